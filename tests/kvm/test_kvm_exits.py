from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from kvm_ioctls import (
    Capability,
    Debug,
    Hlt,
    InternalError,
    IoapicEoi,
    IoIn,
    IoOut,
    IrqWindowOpen,
    MmioRead,
    MmioWrite,
    MsiRoute,
    MsrRead,
    MsrWrite,
    Shutdown,
)
from realmode import (
    CODE,
    HALT_FOR_EVER,
    HLT,
    IRET,
    LAPIC,
    MMIO,
    RDMSR,
    SPIN,
    STI,
    UD2,
    WRMSR,
    Guest,
    eax,
    ecx,
    end_of_interrupt,
    in_,
    load,
    out,
    store,
)

pytestmark = pytest.mark.kvm

Boot = Callable[..., Guest]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_store_without_memory_is_an_mmio_write(boot: Boot, size: int) -> None:
    guest = boot(store(0x10, 0x44332211, size) + HLT)
    assert guest.run() == MmioWrite(MMIO + 0x10, b"\x11\x22\x33\x44"[:size])
    assert guest.run() == Hlt()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_load_without_memory_is_an_mmio_read_with_a_reply(boot: Boot, size: int) -> None:
    guest = boot(eax(0) + load(0x20, size) + HLT)
    match guest.run():
        case MmioRead(addr, width) as read:
            assert (addr, width) == (MMIO + 0x20, size)
            read.reply(b"\xaa\xbb\xcc\xdd"[:size])
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax == int.from_bytes(b"\xaa\xbb\xcc\xdd"[:size], "little")


def test_a_reply_of_the_wrong_length_is_refused(boot: Boot) -> None:
    guest = boot(load(0x20, 4) + HLT)
    read = guest.run()
    assert isinstance(read, MmioRead)
    with pytest.raises(ValueError, match="reads 4 bytes, but the reply has 2"):
        read.reply(b"ab")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_port_write(boot: Boot, size: int) -> None:
    guest = boot(out(0xF4, 0x44332211, size))
    assert guest.run() == IoOut(0xF4, size, 1, b"\x11\x22\x33\x44"[:size])


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_port_read_with_a_reply(boot: Boot, size: int) -> None:
    guest = boot(eax(0) + in_(0xF4, size) + HLT)
    read = guest.run()
    assert isinstance(read, IoIn)
    assert (read.port, read.size, read.count) == (0xF4, size, 1)
    read.reply(b"\xaa\xbb\xcc\xdd"[:size])
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax == int.from_bytes(b"\xaa\xbb\xcc\xdd"[:size], "little")


def test_a_repeated_port_write_carries_every_element(boot: Boot) -> None:
    # mov si, 0x2000; mov cx, 4; mov dx, 0xf4; rep es outsb
    guest = boot(b"\xbe\x00\x20" + b"\xb9\x04\x00" + b"\xba\xf4\x00" + b"\x26\xf3\x6e" + HLT)
    guest.memory[0x2000:0x2004] = b"ring"
    written = b""
    while isinstance(found := guest.run(), IoOut):
        assert (found.port, found.size) == (0xF4, 1)
        assert len(found.data) == found.count
        written += found.data
    assert written == b"ring"
    assert found == Hlt()


def test_a_repeated_port_read_takes_every_element(boot: Boot) -> None:
    # mov di, 0x2000; mov cx, 4; mov dx, 0xf4; rep insb
    guest = boot(b"\xbf\x00\x20" + b"\xb9\x04\x00" + b"\xba\xf4\x00" + b"\xf3\x6c" + HLT)
    given = b"bell"
    while isinstance(found := guest.run(), IoIn):
        found.reply(given[: found.count])
        given = given[found.count :]
    assert found == Hlt()
    assert guest.memory[0x2000:0x2004] == b"bell"


def test_a_triple_fault_is_a_shutdown(boot: Boot) -> None:
    guest = boot(UD2)
    sregs = guest.vcpu.get_sregs()
    sregs.cr0 |= 1  # protected mode, with no interrupt descriptors
    sregs.idt.limit = 0
    sregs.cs.selector, sregs.cs.type = 8, 11
    guest.vcpu.set_sregs(sregs)
    assert guest.run() == Shutdown()


def test_an_instruction_that_kvm_cannot_emulate_is_an_internal_error_with_its_bytes(boot: Boot) -> None:
    fld = b"\xd9\x06\x10\x00"  # fld dword [0x10], where there is no memory
    guest = boot(fld + HLT)
    error = guest.run()
    assert isinstance(error, InternalError)
    assert error.suberror == 1
    assert error.instruction.startswith(fld)
    assert guest.vcpu.get_regs().rip == CODE


def test_a_single_step_is_a_debug_exit(boot: Boot) -> None:
    guest = boot(eax(1) + eax(2) + HLT)
    guest.vcpu.set_guest_debug(1 | 2)
    stop = guest.run()
    assert isinstance(stop, Debug)
    assert (stop.exception, stop.pc) == (1, CODE + len(eax(1)))
    assert guest.vcpu.get_regs().rax == 1


def test_an_interrupt_window_opens_when_the_guest_takes_interrupts(boot: Boot) -> None:
    guest = boot(out(0xF4, 1) + STI + SPIN)
    guest.on_vector(0x40, out(0xF5, 2) + HLT)
    guest.vcpu.request_interrupt_window = True
    assert guest.run() == IoOut(0xF4, 1, 1, b"\x01")
    assert not guest.vcpu.ready_for_interrupt
    assert guest.run() == IrqWindowOpen()
    assert guest.vcpu.ready_for_interrupt
    guest.vcpu.request_interrupt_window = False
    guest.vcpu.interrupt(0x40)
    assert guest.run() == IoOut(0xF5, 1, 1, b"\x02")


def test_an_msr_that_kvm_does_not_know_can_be_read_here(boot: Boot) -> None:
    guest = boot(ecx(0x12345) + RDMSR + HLT)
    guest.vm.enable_cap(Capability.X86_USER_SPACE_MSR, 1 << 1)
    read = guest.run()
    assert isinstance(read, MsrRead)
    assert read.index == 0x12345
    read.reply(0x1_2233_4455)
    assert guest.run() == Hlt()
    regs = guest.vcpu.get_regs()
    assert (regs.rdx, regs.rax) == (1, 0x2233_4455)


def test_an_msr_that_kvm_does_not_know_can_be_written_here(boot: Boot) -> None:
    guest = boot(ecx(0x12345) + eax(0x77) + WRMSR + HLT)
    guest.vm.enable_cap(Capability.X86_USER_SPACE_MSR, 1 << 1)
    guest.vcpu.set_regs(guest.vcpu.get_regs())
    write = guest.run()
    assert isinstance(write, MsrWrite)
    assert (write.index, write.value & 0xFFFF_FFFF) == (0x12345, 0x77)
    assert guest.run() == Hlt()


def test_a_split_irqchip_reports_the_end_of_a_level_interrupt(boot: Boot, eventfd: Callable[[], int]) -> None:
    guest = boot(STI + HALT_FOR_EVER, split_irqchip=True)
    guest.on_vector(0x41, out(0xF4, 1) + end_of_interrupt() + out(0xF5, 2) + IRET)
    level, assert_ = 1 << 15, 1 << 14
    guest.vm.set_gsi_routing([MsiRoute(16, LAPIC, 0x41 | level | assert_)])
    bell = eventfd()
    guest.vm.irqfd(bell, 16)
    os.eventfd_write(bell, 1)
    assert guest.run() == IoOut(0xF4, 1, 1, b"\x01")
    assert guest.run() == IoapicEoi(0x41)
    assert guest.run() == IoOut(0xF5, 1, 1, b"\x02")
