"""Kernels of a few instructions, on the board, on KVM: entered as Linux would be, and heard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bellwire_vmm.board import Board
from bellwire_vmm.linux import Linux, read_kernel
from bellwire_vmm.machine.trouble import meaning
from bellwire_vmm.vmm import Machine, Request, RunResult
from vmm.kernels import HANG, KEYBOARD, POWER_OFF, RESET, bzimage, out, say, vmlinux

pytestmark = pytest.mark.kvm

MIB = 1 << 20
SHLX = b"\xc4\x42\x69\xf7\xc0"  # shlx r8d, r8d, edx (BMI2)
TRIPLE = b"\x0f\x0b"  # ud2


SAY_MAGIC = b"\x66\xba\xf8\x03\x8b\x03\xee"  # mov dx, COM1; mov eax, [rbx]; out dx, al
RBX_FROM_RSI = b"\x48\x8d\x9e\x02\x02\0\0"  # lea rbx, [rsi + 0x202]: the header's magic


class Bench:
    """A machine with a board, and what its guest has said."""

    def __init__(self, vcpus: int = 1) -> None:
        self.said = bytearray()
        self.machine = Machine(4 * MIB, vcpus)
        self.board = Board(self.machine, self.said.extend)

    def run(self, image: bytes) -> RunResult:
        self.machine.load(Linux(read_kernel(image), "quiet"))
        return self.machine.run(20)


@pytest.fixture
def bench(nothing_left_behind: None) -> Iterator[Bench]:
    bench = Bench()
    with bench.machine:
        yield bench


def test_a_bzimage_is_entered_in_long_mode_with_its_zero_page(bench: Bench) -> None:
    result = bench.run(bzimage(say(b"hi ") + RBX_FROM_RSI + SAY_MAGIC + POWER_OFF))
    assert (result.request, result.ok, bytes(bench.said)) == (Request.POWER_OFF, True, b"hi H")


def test_a_vmlinux_is_entered_in_protected_mode_with_its_start_info(bench: Bench) -> None:
    result = bench.run(vmlinux(say(b"hi ") + SAY_MAGIC + POWER_OFF))
    assert (result.request, result.ok, bytes(bench.said)) == (Request.POWER_OFF, True, b"hi \x78")


@pytest.mark.parametrize("code", [out(RESET, 0x06), out(KEYBOARD, 0xFE)])
def test_a_reset_ends_the_run_and_is_told(bench: Bench, code: bytes) -> None:
    result = bench.run(bzimage(code + HANG))
    assert (result.request, result.failure, result.ok) == (Request.RESET, "", False)


def test_other_vcpus_wait_to_be_woken(nothing_left_behind: None) -> None:
    bench = Bench(vcpus=3)
    with bench.machine:
        result = bench.run(bzimage(say(b"one") + POWER_OFF))
    assert (result.ok, bytes(bench.said)) == (True, b"one")


def test_a_triple_fault_is_told_with_its_place_where_the_processor_knows_it(bench: Bench) -> None:
    failure = bench.run(bzimage(TRIPLE)).failure
    assert failure.startswith(("vCPU 0 stopped at rip 0x100200: a triple fault", "vCPU 0 stopped with a triple fault"))


def test_an_instruction_that_this_kvm_cannot_run_is_named(bench: Bench) -> None:
    """Where the processor runs the guest itself there is none, and the kernel powers off (or faults, without BMI2)."""
    result = bench.run(bzimage(b"\xb9\0\0\x08\0\xff\xc9\x75\xfc" + SHLX + POWER_OFF))  # half a million turns first
    if result.ok or "triple fault" in result.failure:
        assert not meaning(bench.machine.processors[0].stats)
        return
    where = f"vCPU 0 stopped at rip {0x100200 + 9:#x}: "
    assert result.failure.startswith(f"{where}KVM cannot emulate [{SHLX.hex(' ')} ")
    assert result.failure.endswith("], AVX or BMI (suberror 1)")
    assert "instructions of this guest" in meaning(bench.machine.processors[0].stats)


def test_micro_guests_run_beside_a_board_as_without(bench: Bench) -> None:
    bench.machine.load("pci")
    assert bench.machine.run(20).code == 1  # it finds no device
