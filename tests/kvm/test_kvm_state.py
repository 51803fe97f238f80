"""The state of a vCPU and of a machine, taken and set."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable

import pytest

from kvm_ioctls import InvalidArgumentError, IoctlError, Kvm, MemoryFlags, PitState2
from realmode import HLT, MEMORY, Guest, eax

pytestmark = pytest.mark.kvm

Boot = Callable[..., Guest]
STORE_IN_PAGE_5 = b"\x26\x66\xa3\x00\x50"  # mov es:[0x5000], eax


def test_the_fpu_and_what_came_after_it_are_what_was_set(boot: Boot) -> None:
    vcpu = boot(HLT).vcpu
    xsave = vcpu.get_xsave()
    xsave.region[0] = 0x0000_027F  # the control word of the FPU: 53 bits of precision
    xsave.region[128] |= 1  # XSTATE_BV: the FPU is not in its state after a reset
    vcpu.set_xsave(xsave)
    assert vcpu.get_xsave().region[0] & 0xFFFF == 0x027F


def test_extended_control_registers_are_what_was_set(boot: Boot) -> None:
    vcpu = boot(HLT).vcpu
    xcrs = vcpu.get_xcrs()
    assert (xcrs.nr_xcrs, xcrs.xcrs[0]) == (1, 0)  # of XCR0
    vcpu.set_xcrs(xcrs)
    assert vcpu.get_xcrs().xcrs[1] == xcrs.xcrs[1]


def test_debug_registers_are_what_was_set(boot: Boot) -> None:
    vcpu = boot(HLT).vcpu
    registers = vcpu.get_debugregs()
    registers.db[2] = 0x1234
    vcpu.set_debugregs(registers)
    assert vcpu.get_debugregs().db[2] == 0x1234


def test_events_are_what_was_set(boot: Boot) -> None:
    vcpu = boot(HLT).vcpu
    events = vcpu.get_vcpu_events()
    events.nmi[1] = 1  # pending
    vcpu.set_vcpu_events(events)
    assert vcpu.get_vcpu_events().nmi[1] == 1


def test_the_clock_goes_on_from_what_was_set(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        vm.set_clock(10**15)
        assert 10**15 <= vm.get_clock().clock < 10**15 + 60 * 10**9


def test_the_timer_is_what_was_set(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        vm.create_irqchip()
        vm.create_pit2()
        state = vm.get_pit2()
        vm.set_pit2(state)
        assert bytes(vm.get_pit2())[:4] == bytes(state)[:4]


def test_a_machine_without_a_timer_says_so(kvm: Kvm) -> None:
    with kvm.create_vm() as vm, pytest.raises(IoctlError) as caught:
        vm.set_pit2(PitState2())
    assert (caught.value.errno, caught.value.ioctl) == (errno.ENXIO, "KVM_SET_PIT2")


def test_a_guest_without_kvm_clock_is_not_told_of_a_pause(boot: Boot) -> None:
    with pytest.raises(IoctlError, match="KVM_KVMCLOCK_CTRL"):
        boot(HLT).vcpu.kvmclock_ctrl()


def test_the_pages_that_a_guest_writes_are_logged_once(boot: Boot) -> None:
    guest = boot(eax(1) + STORE_IN_PAGE_5 + HLT)
    guest.vm.set_user_memory_region(0, 0, MEMORY, ctypes.addressof(guest._pin), MemoryFlags.LOG_DIRTY_PAGES)
    guest.run()
    assert int.from_bytes(guest.vm.get_dirty_log(0, MEMORY // 4096), "little") >> 5 & 1
    assert not any(guest.vm.get_dirty_log(0, MEMORY // 4096))


def test_a_slot_that_logs_nothing_says_so(boot: Boot) -> None:
    guest = boot(HLT)
    with pytest.raises(IoctlError) as caught:
        guest.vm.get_dirty_log(0, MEMORY // 4096)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(InvalidArgumentError):
        guest.vm.get_dirty_log(0, 0)
