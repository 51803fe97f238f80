from __future__ import annotations

import contextlib
import errno
import os
import platform
from collections.abc import Callable

import pytest

from kvm_ioctls import (
    Capability,
    ConflictError,
    IoctlError,
    IoOut,
    Irqchip,
    IrqchipRoute,
    IrqchipState,
    MsiRoute,
    default_routes,
)
from realmode import (
    HALT_FOR_EVER,
    HLT,
    IRET,
    LAPIC,
    STI,
    Guest,
    end_of_interrupt,
    ioapic_route,
    out,
)

pytestmark = pytest.mark.kvm

Boot = Callable[..., Guest]
Make = Callable[[], int]

READY, TAKEN, DONE = (IoOut(0xF4, 1, 1, bytes([value])) for value in (1, 2, 3))
VECTOR = 0x40


@pytest.fixture
def listener(boot: Boot) -> Callable[..., Guest]:
    """A guest that says READY, then TAKEN and DONE around each end of an interrupt."""

    def make(setup: bytes = b"") -> Guest:
        guest = boot(setup + out(0xF4, 1) + STI + HALT_FOR_EVER, irqchip=True)
        guest.on_vector(VECTOR, out(0xF4, 2) + end_of_interrupt() + out(0xF4, 3) + IRET)
        assert guest.run() == READY
        return guest

    return make


def test_an_irqfd_with_an_msi_route_interrupts(listener: Callable[..., Guest], eventfd: Make) -> None:
    guest, bell = listener(), eventfd()
    guest.vm.set_gsi_routing([*default_routes(), MsiRoute(24, LAPIC, VECTOR)])
    guest.vm.irqfd(bell, 24)
    for _ in range(3):
        os.eventfd_write(bell, 1)
        assert (guest.run(), guest.run()) == (TAKEN, DONE)


def test_an_irqfd_bound_before_its_route_exists_interrupts(listener: Callable[..., Guest], eventfd: Make) -> None:
    guest, bell = listener(), eventfd()
    guest.vm.irqfd(bell, 30)
    guest.vm.set_gsi_routing([MsiRoute(30, LAPIC, VECTOR)])
    os.eventfd_write(bell, 1)
    assert guest.run() == TAKEN


def test_a_deassigned_irqfd_is_silent(listener: Callable[..., Guest], eventfd: Make) -> None:
    guest, bell, other = listener(), eventfd(), eventfd()
    guest.vm.set_gsi_routing([MsiRoute(24, LAPIC, 0x41), MsiRoute(25, LAPIC, VECTOR)])
    guest.on_vector(0x41, out(0xF4, 99) + HLT, at=0x3800)
    guest.vm.irqfd(bell, 24)
    guest.vm.irqfd(other, 25)
    guest.vm.irqfd_deassign(bell, 24)
    os.eventfd_write(bell, 1)
    os.eventfd_write(other, 1)
    assert guest.run() == TAKEN
    assert os.eventfd_read(bell) == 1


def test_an_eventfd_serves_one_irqfd_at_a_time(listener: Callable[..., Guest], eventfd: Make) -> None:
    guest, bell = listener(), eventfd()
    guest.vm.irqfd(bell, 24)
    with pytest.raises(IoctlError, match=r"KVM_IRQFD\(fd=\d+, gsi=25") as caught:
        guest.vm.irqfd(bell, 25)
    assert caught.value.errno == errno.EBUSY


def test_a_resampling_irqfd_reports_each_end_of_interrupt(listener: Callable[..., Guest], eventfd: Make) -> None:
    guest = listener(ioapic_route(16, VECTOR, level=True))
    bell, resample = eventfd(), eventfd()
    guest.vm.irqfd(bell, 16, resample)
    for _ in range(3):
        os.eventfd_write(bell, 1)
        # Some software-virtualised KVMs end the interrupt as they deliver it: so count at the end only.
        assert (guest.run(), guest.run()) == (TAKEN, DONE)
        assert os.eventfd_read(resample) == 1


def test_a_resampling_irqfd_interrupts_again_when_it_is_rung_again_for_a_line_still_up(
    listener: Callable[..., Guest], eventfd: Make
) -> None:
    guest = listener(ioapic_route(17, VECTOR, level=True))
    bell, resample = eventfd(), eventfd()
    guest.vm.irqfd(bell, 17, resample)
    os.eventfd_write(bell, 1)
    for _ in range(20):
        assert (guest.run(), guest.run()) == (TAKEN, DONE)
        os.eventfd_read(resample)
        os.eventfd_write(bell, 1)


def test_a_resampling_irqfd_can_be_taken_away_and_bound_again(listener: Callable[..., Guest], eventfd: Make) -> None:
    guest = listener(ioapic_route(16, VECTOR, level=True))
    bell, resample = eventfd(), eventfd()
    guest.vm.irqfd(bell, 16, resample)
    guest.vm.irqfd_deassign(bell, 16)
    guest.vm.irqfd(bell, 16, resample)
    os.eventfd_write(bell, 1)
    assert guest.run() == TAKEN


def test_an_interrupt_line_stays_up_until_it_is_lowered(listener: Callable[..., Guest]) -> None:
    guest = listener(ioapic_route(16, VECTOR, level=True))
    guest.vm.irq_line(16, True)
    assert [guest.run() for _ in range(4)] == [TAKEN, DONE, TAKEN, DONE]
    guest.vm.irq_line(16, False)
    guest.vm.irq_line(16, True)
    assert guest.run() == TAKEN


def test_an_interrupt_controller_can_be_put_back_into_an_earlier_state(boot: Boot) -> None:
    guest = boot(ioapic_route(16, VECTOR) + out(0xF4, 1), irqchip=True)
    fresh = bytes(guest.vm.get_irqchip(Irqchip.IOAPIC))
    assert guest.run() == READY
    routed = guest.vm.get_irqchip(Irqchip.IOAPIC)
    assert bytes(routed) != fresh
    guest.vm.set_irqchip(IrqchipState.from_buffer_copy(fresh))
    assert bytes(guest.vm.get_irqchip(Irqchip.IOAPIC)) == fresh
    guest.vm.set_irqchip(routed)
    assert bytes(guest.vm.get_irqchip(Irqchip.IOAPIC)) == bytes(routed)


def test_a_controller_that_is_not_there_is_refused(boot: Boot) -> None:
    with pytest.raises(IoctlError, match=r"KVM_GET_IRQCHIP\(chip_id=9\)"):
        boot(HLT, irqchip=True).vm.get_irqchip(9)


def test_signal_msi_interrupts_at_once(listener: Callable[..., Guest]) -> None:
    guest = listener()
    assert guest.vm.signal_msi(LAPIC, VECTOR)
    assert (guest.run(), guest.run()) == (TAKEN, DONE)


def test_signal_msi_to_nobody_says_so(listener: Callable[..., Guest]) -> None:
    guest = listener()
    nobody = LAPIC | 0x55 << 12
    assert not guest.vm.signal_msi(nobody, VECTOR)


def test_default_routes_are_what_kvm_starts_with(listener: Callable[..., Guest]) -> None:
    guest = listener(ioapic_route(17, VECTOR))
    guest.vm.set_gsi_routing(default_routes())
    guest.vm.irq_line(17, True)
    assert guest.run() == TAKEN


def test_a_route_to_no_such_pin_is_refused(listener: Callable[..., Guest]) -> None:
    guest = listener()
    with pytest.raises(IoctlError, match=r"KVM_SET_GSI_ROUTING\(nr=1\)"):
        guest.vm.set_gsi_routing([IrqchipRoute(5, 2, 99)])


def test_a_second_irqchip_conflicts(boot: Boot) -> None:
    guest = boot(HLT, irqchip=True)
    with pytest.raises(ConflictError, match="KVM_CREATE_IRQCHIP"):
        guest.vm.create_irqchip()


def test_a_timer_needs_an_irqchip(boot: Boot) -> None:
    guest = boot(HLT)
    older = tuple(map(int, platform.release().split(".")[:2])) < (6, 18)  # they may make one that nobody hears
    with contextlib.suppress(IoctlError) if older else pytest.raises(IoctlError, match="KVM_CREATE_PIT2"):
        guest.vm.create_pit2()


def test_the_timer_interrupts(listener: Callable[..., Guest]) -> None:
    guest = listener(ioapic_route(0, VECTOR))
    guest.vm.create_pit2()
    # Channel 0, mode 2 (rate generator), about every millisecond.
    guest.start(out(0x43, 0x34) + out(0x40, 0xA9) + out(0x40, 0x04) + STI + HALT_FOR_EVER)
    assert [guest.run() for _ in range(4)] == [TAKEN, DONE, TAKEN, DONE]


def test_the_kernel_counts_irqfd_interrupts(listener: Callable[..., Guest], eventfd: Make) -> None:
    guest, bell = listener(), eventfd()
    guest.vm.set_gsi_routing([MsiRoute(24, LAPIC, VECTOR)])
    guest.vm.irqfd(bell, 24)
    with guest.vcpu.stats() as stats:
        before = stats["irq_injections"]
        for _ in range(5):
            os.eventfd_write(bell, 1)
            assert (guest.run(), guest.run()) == (TAKEN, DONE)
        assert 5 <= stats["irq_injections"] - before <= 10  # attempts count, and emulated hardware takes some twice


def test_the_machine_has_what_bells_need(boot: Boot) -> None:
    vm = boot(HLT).vm
    needed = (
        Capability.IRQCHIP,
        Capability.IOEVENTFD,
        Capability.IOEVENTFD_NO_LENGTH,
        Capability.IRQFD,
        Capability.IRQFD_RESAMPLE,
        Capability.IRQ_ROUTING,
        Capability.SIGNAL_MSI,
        Capability.IMMEDIATE_EXIT,
    )
    assert all(vm.check_extension(cap) > 0 for cap in needed)
