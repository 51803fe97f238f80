"""The machine itself: how runs begin and end, several vCPUs, and what guests may say."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwire_vmm import guests
from bellwire_vmm.errors import GuestImageError, VmmError
from bellwire_vmm.machine import boot
from bellwire_vmm.machine.processor import Mark
from bellwire_vmm.vmm import Machine, RunResult
from kvm_ioctls import InternalError
from vfio_user import Client
from vmm import toy
from vmm.program import Outcome, Program, bar, execute
from vmm.toy import Toy

pytestmark = pytest.mark.kvm

MIB = 1 << 20
Run = Callable[[Program], Outcome]

UNDEFINED = b"\x0f\x0b"  # ud2
COUNTER = 0x3_8000
# lock inc qword [COUNTER], by every vCPU; then vCPU 0 (rdi) waits until all have, and the others halt
COUNT_ME = b"\x48\xba" + COUNTER.to_bytes(8, "little") + b"\xf0\x48\xff\x02"


def gathering(vcpus: int) -> Program:
    """Every vCPU counts itself; the first waits for all to have, and goes on; the others halt."""
    halt = b"\x85\xff\x74\x04\xfa\xf4\xeb\xfc"  # test edi, edi; jz over; cli; hlt; jmp back
    wait = b"\x48\x83\x3a" + bytes([vcpus]) + b"\xf3\x90\x72\xf8"  # cmp qword [rdx], n; pause; jb back
    return Program().raw(COUNT_ME + halt + wait)


@pytest.mark.parametrize("vcpus", [1, 2, 8])
def test_all_vcpus_run(vcpus: int, tmp_path: Path) -> None:
    with Machine(16 * MIB, vcpus) as machine:
        for _ in range(2):
            outcome = execute(machine, gathering(vcpus).load(COUNTER, 8), tmp_path)
            assert outcome.run.ok, outcome.run
            assert outcome.values == (vcpus,)
            assert len(outcome.run.runs) == vcpus


def test_vcpus_ring_one_device_side_by_side(tmp_path: Path) -> None:
    vcpus, times = 2, 200
    with toy.served(device := Toy("wildcard", "acked")) as sock, Machine(16 * MIB, vcpus) as machine:
        proxy = machine.plug(Client(sock))
        control, bells = bar(proxy, 0), bar(proxy, 1)
        ring = Program().store(bells + toy.WILDCARD, 0, times=times)
        ring.store(bells + toy.SCRATCH + 8, 1, times=times).store(control + toy.IRQ_ON_RING, 0, times=times)
        program = ring.load(control).raw(gathering(vcpus).code)
        program.load(control + toy.WILDCARD_COUNT, 8)
        outcome = execute(machine, program, tmp_path)
    assert outcome.run.ok, outcome.run
    assert outcome.values[-1] == vcpus * times
    assert device.messages.count((0, toy.IRQ_ON_RING, bytes(4))) == vcpus * times


def test_several_devices_answer_each_at_its_own_place(
    machine: Machine, serve: Callable[[Toy], Client], run: Run
) -> None:
    devices = [machine.plug(serve(Toy("wildcard"))) for _ in range(3)]
    program = Program()
    for times, device in enumerate(devices, 1):
        program.store(bar(device, 1) + toy.WILDCARD, 0, times=times)
    for device in devices:
        program.load(bar(device, 0) + toy.WILDCARD_COUNT, 8).read_config(device.slot, 0)
    assert run(program).values == (1, 0xBE11_1234, 2, 0xBE11_1234, 3, 0xBE11_1234)


def test_a_guest_ends_the_run_with_a_code(machine: Machine, tmp_path: Path) -> None:
    result = execute(machine, Program().leave(3), tmp_path).run
    assert (result.code, result.failure, result.ok) == (3, "", False)


def test_a_guest_that_never_ends_is_ended(machine: Machine, tmp_path: Path) -> None:
    begin = time.monotonic()
    result = execute(machine, Program().spin(), tmp_path, timeout=0.05).run
    assert not result.ok
    assert result.failure == "the guest was still running after 0.05 s"
    assert time.monotonic() - begin < 30


def test_a_run_can_be_stopped_from_another_thread(machine: Machine, tmp_path: Path) -> None:
    machine.on_mark = lambda mark: threading.Thread(target=machine.stop).start()
    result = execute(machine, Program().mark(1).spin(), tmp_path).run
    assert (result.code, result.failure) == (None, "")


def test_a_vcpu_that_breaks_says_where_and_why(machine: Machine, tmp_path: Path) -> None:
    result = execute(machine, Program().raw(UNDEFINED), tmp_path).run
    assert not result.ok
    fault = "a triple fault (an exception with no handler) at [0f 0b "
    nowhere = "stopped with a triple fault"  # on AMD's hardware
    assert result.failure.startswith((f"vCPU 0 stopped at rip {boot.IMAGE:#x}: {fault}", f"vCPU 0 {nowhere}"))


def test_an_instruction_that_kvm_cannot_emulate_is_shown(machine: Machine) -> None:
    machine._result = RunResult()
    machine.broke(machine.processors[0], InternalError(1, (), b"\xd9\xe8"))
    assert machine._result.failure.endswith(": KVM cannot emulate [d9 e8], x87 (suberror 1)")


def test_a_machine_runs_again_after_a_break(machine: Machine, tmp_path: Path) -> None:
    execute(machine, Program().raw(UNDEFINED), tmp_path)
    assert execute(machine, Program().leave(), tmp_path).run.ok


def test_text_and_marks_are_kept_in_order(machine: Machine, tmp_path: Path) -> None:
    told: list[Mark] = []
    machine.on_mark = told.append
    program = Program().out(0xE9, ord("h"), 1).mark(0x101).out(0xE9, ord("i"), 1).mark(0x202)
    result = execute(machine, program, tmp_path).run
    assert result.text == "hi"
    assert [mark.value for mark in result.marks] == [0x101, 0x202]
    assert result.marks == told
    assert result.marks[1].runs - result.marks[0].runs == 2


def test_a_mark_whose_listener_fails_ends_the_run_with_its_error(machine: Machine, tmp_path: Path) -> None:
    def fail(mark: Mark) -> None:
        raise LookupError(mark.value)

    machine.on_mark = fail
    with pytest.raises(LookupError, match="7"):
        execute(machine, Program().mark(7).spin(), tmp_path)


def test_memory_is_clean_for_each_guest(machine: Machine, run: Run) -> None:
    assert run(Program().store(COUNTER, 1).load(COUNTER)).values == (1,)
    assert run(Program().load(COUNTER)).values == (0,)


@pytest.mark.parametrize(
    ("memory", "vcpus", "why"),
    [
        (MIB, 1, "0x100000 bytes of memory: expected 2 MiB to 3 GiB"),
        (4 << 30, 1, "expected 2 MiB to 3 GiB"),
        (16 * MIB + 1, 1, "expected a positive multiple of 0x1000"),
        (16 * MIB, 0, "0 vCPUs: expected 1 to 8"),
        (16 * MIB, 9, "9 vCPUs: expected 1 to 8"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(memory: int, vcpus: int, why: str) -> None:
    with pytest.raises(VmmError, match=why):
        Machine(memory, vcpus)


def test_the_smallest_and_the_largest_machine_run(tmp_path: Path) -> None:
    for memory in (2 * MIB, 3 << 30):
        with Machine(memory) as machine:
            assert execute(machine, Program().load(memory - 8, 8), tmp_path).values == (0,)


def test_guests_that_cannot_be_loaded_are_refused(machine: Machine, tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(MIB))
    cases = {
        "no-such-guest": f"no guest 'no-such-guest': there are {', '.join(guests.names())}; or give a path",
        str(tmp_path / "none.bin"): "cannot read the guest image .*none.bin: No such file",
        str(large): "the guest image has 1048576 bytes: it would reach into the stacks",
    }
    for guest, why in cases.items():
        with pytest.raises(GuestImageError, match=why):
            machine.load(guest)
    with pytest.raises(GuestImageError, match="4097 bytes of parameters: the page holds 4096"):
        machine.load("bell", bytes(4097))


def test_a_machine_closed_with_devices_unplugs_them(serve: Callable[[Toy], Client], machine: Machine) -> None:
    machine.plug(serve(Toy("wildcard", "value", "pio", mapped=True)))
    machine.close()
    assert machine.devices == []
