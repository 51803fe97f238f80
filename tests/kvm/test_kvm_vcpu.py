from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from kvm_ioctls import Hlt, IoctlError, IoOut, Kvm, MpState, Regs
from realmode import HLT, Guest, eax, out, store

pytestmark = pytest.mark.kvm

Boot = Callable[..., Guest]

TSC, EFER, LSTAR = 0x10, 0xC000_0080, 0xC000_0082


def test_registers_are_what_was_set(boot: Boot) -> None:
    vcpu = boot(HLT).vcpu
    vcpu.set_regs(Regs(rax=1, r15=1 << 63, rip=0x1234, rflags=2))
    regs = vcpu.get_regs()
    assert (regs.rax, regs.rbx, regs.r15, regs.rip, regs.rflags) == (1, 0, 1 << 63, 0x1234, 2)


def test_the_guest_changes_registers(boot: Boot) -> None:
    guest = boot(eax(0xBE11) + HLT)
    assert guest.run() == Hlt()
    assert guest.vcpu.get_regs().rax == 0xBE11


def test_special_registers_are_what_was_set(boot: Boot) -> None:
    vcpu = boot(HLT).vcpu
    sregs = vcpu.get_sregs()
    sregs.cr2, sregs.gdt.base, sregs.gdt.limit, sregs.es.base = 0x1000, 0x2000, 0x27, 0x4_0000
    vcpu.set_sregs(sregs)
    sregs = vcpu.get_sregs()
    assert (sregs.cr2, sregs.gdt.base, sregs.gdt.limit, sregs.es.base) == (0x1000, 0x2000, 0x27, 0x4_0000)


def test_contradictory_control_registers_are_refused(boot: Boot) -> None:
    vcpu = boot(HLT).vcpu
    sregs = vcpu.get_sregs()
    sregs.cr0 |= 1 << 31  # paging without protection
    sregs.cr4 = 1 << 40
    with pytest.raises(IoctlError) as caught:
        vcpu.set_sregs(sregs)
    assert (caught.value.errno, caught.value.ioctl) == (errno.EINVAL, "KVM_SET_SREGS")
    assert caught.value.arguments["cr4"] == 1 << 40


def test_model_specific_registers_are_what_was_set(boot: Boot) -> None:
    vcpu = boot(HLT).vcpu
    vcpu.set_msrs({LSTAR: 0xFFFF_8000_0000_0000, EFER: 1})
    assert vcpu.get_msrs([EFER, LSTAR]) == {EFER: 1, LSTAR: 0xFFFF_8000_0000_0000}


def test_an_unknown_model_specific_register_is_named(boot: Boot) -> None:
    vcpu = boot(HLT).vcpu
    with pytest.raises(IoctlError, match=r"KVM_GET_MSRS\(index=0x12345, data=0\)"):
        vcpu.get_msrs([TSC, 0x12345])
    with pytest.raises(IoctlError, match=r"KVM_SET_MSRS\(index=0x12345, data=7\)"):
        vcpu.set_msrs({LSTAR: 1, 0x12345: 7})
    assert vcpu.get_msrs([LSTAR]) == {LSTAR: 1}


def test_the_cpuid_can_be_changed(boot: Boot, kvm: Kvm) -> None:
    cpuid = kvm.supported_cpuid()
    for leaf in cpuid:
        if leaf.function == 0:
            leaf.ebx = int.from_bytes(b"Bell", "little")
    vcpu = boot(HLT).vcpu
    vcpu.set_cpuid2(cpuid)
    found = vcpu.get_cpuid2().find(0)
    assert found is not None
    assert found.ebx == int.from_bytes(b"Bell", "little")


def test_the_first_cpu_is_runnable_and_others_wait(boot: Boot) -> None:
    guest = boot(HLT, irqchip=True)
    with guest.vm.create_vcpu(1) as second:
        assert guest.vcpu.get_mp_state() == MpState.RUNNABLE
        assert second.get_mp_state() == MpState.UNINITIALIZED


def test_another_cpu_runs_once_it_is_made_runnable(boot: Boot) -> None:
    guest = boot(out(0xF4, 7) + HLT, irqchip=True)
    with guest.vm.create_vcpu(1) as second:
        second.set_sregs(guest.vcpu.get_sregs())
        second.set_regs(guest.vcpu.get_regs())
        second.set_mp_state(MpState.RUNNABLE)
        assert second.run() == IoOut(0xF4, 1, 1, b"\7")


def test_a_local_apic_is_what_was_set(boot: Boot) -> None:
    vcpu = boot(HLT, irqchip=True).vcpu
    lapic = vcpu.get_lapic()
    lapic.write(0x80, 0x20)
    vcpu.set_lapic(lapic)
    assert vcpu.get_lapic().read(0x80) == 0x20


def test_there_is_no_local_apic_without_an_irqchip(boot: Boot) -> None:
    with pytest.raises(IoctlError, match="KVM_GET_LAPIC"):
        boot(HLT).vcpu.get_lapic()


@pytest.mark.parametrize("offset", [-16, 4, 0x400])
def test_a_local_apic_has_no_register_elsewhere(boot: Boot, offset: int) -> None:
    lapic = boot(HLT, irqchip=True).vcpu.get_lapic()
    with pytest.raises(ValueError, match="no local APIC register"):
        lapic.read(offset)


def test_an_interrupt_by_hand_needs_the_irqchip_to_be_absent(boot: Boot) -> None:
    with pytest.raises(IoctlError) as caught:
        boot(HLT, irqchip=True).vcpu.interrupt(0x40)
    assert caught.value.errno == errno.ENXIO


def test_the_clock_has_a_rate(boot: Boot) -> None:
    assert boot(HLT).vcpu.tsc_khz() > 100_000


def test_enabling_what_is_no_capability_is_refused(boot: Boot) -> None:
    with pytest.raises(IoctlError, match=r"KVM_ENABLE_CAP\(cap=0xfffff, flags=0\)"):
        boot(HLT).vcpu.enable_cap(0xFFFFF)


def test_the_kernel_counts_mmio_exits(boot: Boot) -> None:
    guest = boot(store(0, 1) * 5 + HLT)
    with guest.vcpu.stats() as stats:
        before = stats.read()
        assert len(guest.mmio_writes()) == 5
        after = stats.read()
    assert after["mmio_exits"] - before["mmio_exits"] == 5
    assert after["exits"] > before["exits"]


def test_a_counter_can_be_read_alone(boot: Boot) -> None:
    guest = boot(store(0, 1) + HLT)
    with guest.vcpu.stats() as stats:
        guest.mmio_writes()
        assert "mmio_exits" in stats
        assert stats["mmio_exits"] == stats.read()["mmio_exits"] == 1
        with pytest.raises(KeyError):
            stats["no such counter"]


def test_a_closed_cpu_does_not_run(boot: Boot) -> None:
    guest = boot(HLT)
    guest.vcpu.close()
    with pytest.raises(IoctlError, match=r"KVM_RUN\(vcpu=0"):
        guest.run()
