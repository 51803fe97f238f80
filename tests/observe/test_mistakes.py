"""Mistakes of drivers: each is told once with what led there, and counted always."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from bellwire import Bar, GuestError, IntX, MsiX, PciDevice
from bellwire.filters.builtin.mistakes import MOST_KINDS, DriverMistake, Mistakes
from bellwire.model import capabilities as pci
from bellwire.testing.guest import Guest


class Queue(PciDevice, vendor=0x1234, device=0x11F1, class_code=0x088000):
    """A queue."""

    line = IntX()
    irq = MsiX(2)
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x00, access="ro")
    base = mmio.reg(0x08, size=8)
    secret = mmio.reg(0x10, access="wo")
    go = mmio.doorbell(0x20)
    go.needs(base)

    @go.ring
    def start(self) -> None:
        self.dma.read(self.base, 16)

    @secret.write
    def told(self, value: int) -> None:
        if value == 1:
            self.line.high()
        elif value == 2:
            self.line.low()
        elif value == 3:
            self.irq[1].trigger()
        elif value == 4:
            self.after(5.0, self.told, 0)


Act = Callable[[Guest[Queue]], Any]
BASE = 0x1000


def found(act: Act, **arguments: Any) -> dict[str, int]:
    mistakes = Mistakes(**arguments)
    with Guest(Queue, filters=[mistakes]) as guest:
        act(guest)
        return mistakes.report()


def good_driver(guest: Guest[Queue]) -> None:
    guest.read(Queue.status)
    guest.write(Queue.base, BASE)
    guest.ring(Queue.go)
    guest.write(Queue.secret, 1)
    guest.write(Queue.secret, 2)
    guest.advance(10)
    guest.write(Queue.secret, 3)


def test_a_driver_without_mistakes_hears_nothing() -> None:
    assert found(good_driver) == {}


def mask(guest: Guest[Queue], masked: bool) -> None:
    """Set the function mask of MSI-X (PCI 3.0 §6.8.2.3)."""
    control = guest.device.core.config.at[pci.MSIX] + 2
    guest.config_write(control, 0xC000 if masked else 0x8000, 2)


def twice(act: Act) -> Act:
    def do(guest: Guest[Queue]) -> None:
        act(guest)
        act(guest)

    return do


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda guest: guest.read(0, 0x800, 4), "a read of 4 bytes at BAR0+0x800, where nothing is"),
        (
            lambda guest: guest.write(0, 7, offset=0x800, size=2),
            "a write of 2 bytes at BAR0+0x800, where nothing is",
        ),
        (lambda guest: guest.write(Queue.status, 1), "status is written, and is read-only (ro)"),
        (lambda guest: guest.read(Queue.secret), "secret is read, and is write-only"),
        (lambda guest: guest.read(0, 0x08, 2), "a read of 2 bytes at BAR0+0x8: base has 8"),
        (lambda guest: guest.write(0, 7, offset=0x08, size=4), "a write of 4 bytes at BAR0+0x8: base has 8"),
        (lambda guest: guest.ring(Queue.go), "go is rung while base, which it needs, is 0"),
    ],
)
def test_a_mistake_in_an_access_is_counted_each_time(act: Act, said: str) -> None:
    assert found(twice(act)) == {said: 2}
    with pytest.raises(DriverMistake, match="^" + said[:20]):
        found(act, strict=True)


def test_what_the_model_refuses_is_a_mistake_whatever_the_numbers() -> None:
    def beyond(guest: Guest[Queue]) -> None:
        for base in (1 << 40, 1 << 41):
            guest.write(Queue.base, base)
            with pytest.raises(GuestError):
                guest.ring(Queue.go)

    (said,) = (counts := found(beyond))
    assert said.startswith("ring of go: DMA read of 16 bytes at 0x10000000000")
    assert counts[said] == 2


def test_dma_while_bus_mastering_is_off_is_a_mistake() -> None:
    def off(guest: Guest[Queue]) -> None:
        guest.write(Queue.base, BASE)
        guest.config_write(4, 2, 2)
        with pytest.raises(GuestError):
            guest.ring(Queue.go)

    (said,) = found(off)
    assert "bus mastering off" in said


def test_a_register_that_is_polled_in_a_tight_loop_is_told_with_how_often(caplog: pytest.LogCaptureFixture) -> None:
    def poll(guest: Guest[Queue]) -> None:
        for _ in range(25):
            guest.read(Queue.status)

    assert found(poll, spin=10) == {"status is read in a tight loop": 1}
    assert "status is read in a tight loop: 10 times in " in caplog.text


def test_a_loop_that_does_something_else_too_is_none() -> None:
    def poll(guest: Guest[Queue]) -> None:
        for _ in range(25):
            guest.read(Queue.status)
            guest.write(Queue.base, 1)

    assert found(poll, spin=10) == {}


def test_an_intx_interrupt_that_stays_unacknowledged_is_a_mistake() -> None:
    def ignore(guest: Guest[Queue]) -> None:
        guest.write(Queue.secret, 1)
        guest.advance(0.9)
        guest.advance(0.2)

    assert found(ignore) == {"INTx has been high for 1 s: the driver does not acknowledge it": 1}


def test_a_driver_that_has_left_is_blamed_for_nothing() -> None:
    def leave(guest: Guest[Queue]) -> None:
        guest.write(Queue.secret, 1)
        guest.device.core.join(False)
        guest.advance(2)

    assert found(leave) == {}


def test_a_vector_that_stays_masked_is_a_mistake() -> None:
    def act(guest: Guest[Queue]) -> None:
        mask(guest, True)
        guest.write(Queue.secret, 3)
        guest.advance(1.1)

    assert found(act) == {"MSI-X 1 has been pending for 1 s: it is masked": 1}


def test_a_vector_that_is_unmasked_in_time_is_none() -> None:
    def act(guest: Guest[Queue]) -> None:
        mask(guest, True)
        guest.write(Queue.secret, 3)
        mask(guest, False)
        guest.advance(2)

    assert found(act) == {}


def test_a_reset_in_the_middle_of_work_is_a_mistake() -> None:
    def hurry(guest: Guest[Queue]) -> None:
        guest.write(Queue.secret, 4)
        guest.reset()

    assert found(hurry) == {"a reset in the middle of work: 1 of the device's timers were running": 1}


def test_the_log_has_each_mistake_once_with_the_events_that_led_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    def act(guest: Guest[Queue]) -> None:
        guest.write(Queue.base, 0x77)
        guest.write(Queue.status, 1)
        guest.write(Queue.status, 2)

    found(act)
    (said,) = [record.getMessage() for record in caplog.records]
    first, *lead = said.splitlines()
    assert first == "the driver's mistake: status is written, and is read-only (ro); it came after"
    assert [line.split(" ", 3)[3].strip() for line in lead][-2:] == [
        "write   base = 0x0000000000000077  BAR0+0x8",
        "write   status = 0x00000001  BAR0+0x0",
    ]


def test_a_guest_cannot_make_it_remember_without_end() -> None:
    mistakes = Mistakes()
    with Guest(Queue, filters=[mistakes]):
        for number in range(2 * MOST_KINDS):
            mistakes._tell("x" * number)
        assert len(mistakes.counts) == MOST_KINDS + 1
        assert mistakes.counts["other mistakes"] == MOST_KINDS
