"""Mistakes of drivers: each is told once with what led there, and counted always."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from bellwire import Bar, GuestError, IntX, Job, MsiX, PciDevice, Pool
from bellwire.declare.register import Register
from bellwire.filters.builtin.mistakes import MOST_OF_A_SORT, DriverMistake, Mistakes
from bellwire.model import capabilities as pci
from bellwire.model.host import Timer
from bellwire.testing.guest import Guest


class Queue(PciDevice, vendor=0x1234, device=0x11F1, class_code=0x088000):
    """A queue."""

    threads: Pool
    timer: Timer

    line = IntX()
    irq = MsiX(2)
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x00, access="ro")
    base = mmio.reg(0x08, size=8)
    secret = mmio.reg(0x10, access="wo")
    ready = mmio.reg(0x14, access="ro")
    address = mmio.reg(0x18, size=6)
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
            self.after(5.0, self.ends)
        elif value == 5:
            self.threads.submit(Job(int))
        elif value == 6:
            self.beat()

    def setup(self) -> None:
        self.threads = self.pool(1, lambda jobs: None)

    def ends(self) -> None:
        pass

    def beat(self) -> None:
        self.timer = self.after(1.0, self.beat)


Act = Callable[[Guest[Queue]], Any]
BASE = 0x1000


def found(act: Act, **arguments: Any) -> dict[str, Any]:
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
        (lambda guest: guest.read(0, 0x0A, 4), "a read of 4 bytes at BAR0+0xa: base has 8"),
        (lambda guest: guest.read(0, 0x14, 8), "a read of 8 bytes at BAR0+0x14: ready has 4, address has 6"),
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


@pytest.mark.parametrize(
    "act",
    [
        lambda guest: (guest.read(0, 0x08, 4), guest.read(0, 0x0C, 4)),
        lambda guest: (guest.write(0, 7, offset=0x08, size=4), guest.write(0, 7, offset=0x0C, size=4)),
        lambda guest: [guest.read(0, 0x18 + byte, 1) for byte in range(6)],
    ],
    ids=["halves of 8 bytes read", "and written", "bytes of an address"],
)
def test_a_part_of_a_register_that_a_driver_may_access_is_no_mistake(act: Act) -> None:
    assert found(act) == {}


def test_mistakes_at_different_registers_or_offsets_are_told_one_by_one() -> None:
    def act(guest: Guest[Queue]) -> None:
        guest.write(Queue.status, 1)
        guest.write(Queue.ready, 1)
        for offset in (0x500, 0x600):
            guest.read(0, offset, 4)

    assert found(act) == {
        "status is written, and is read-only (ro)": 1,
        "ready is written, and is read-only (ro)": 1,
        "a read of 4 bytes at BAR0+0x500, where nothing is": 1,
        "a read of 4 bytes at BAR0+0x600, where nothing is": 1,
    }


def poll(times: int, *registers: Register[int], pause: float = 0.0) -> Act:
    def act(guest: Guest[Queue]) -> None:
        for _ in range(times):
            for register in registers:
                guest.read(register)
                guest.advance(pause)

    return act


@pytest.mark.parametrize(
    ("act", "places", "length"),
    [
        (poll(25, Queue.status, pause=0.01), "status", "25 reads in 240.0 ms"),
        (poll(25, Queue.status, Queue.ready), "ready, status", "50 reads in 0.0 ms"),
    ],
)
def test_a_tight_loop_is_told_with_what_it_reads_and_how_long(
    act: Act, places: str, length: str, caplog: pytest.LogCaptureFixture
) -> None:
    def twice_and_write(guest: Guest[Queue]) -> None:
        for _ in range(2):
            act(guest)
            guest.write(Queue.base, 1)

    assert found(twice_and_write, spin=10) == {
        f"read in a tight loop: {places}": 2,
        f"the first tight loop of {places}": length,
    }
    assert f"read in a tight loop: {places}: 10 reads in " in caplog.text
    assert f"the driver's tight loop has ended: {places}: {length}" in caplog.text


def test_a_loop_with_a_pause_is_no_tight_one() -> None:
    assert found(poll(25, Queue.status, pause=0.2), spin=10) == {}


def test_a_loop_that_becomes_slow_has_ended() -> None:
    def act(guest: Guest[Queue]) -> None:
        poll(25, Queue.status)(guest)
        poll(25, Queue.status, pause=5.0)(guest)

    assert found(act, spin=10)["the first tight loop of status"] == "26 reads in 0.0 ms"


def test_reads_that_find_something_new_are_no_loop() -> None:
    def act(guest: Guest[Queue]) -> None:
        for value in range(25):
            guest.device.status = value
            guest.read(Queue.status)

    assert found(act, spin=10) == {}


def test_a_loop_that_does_something_else_too_is_none() -> None:
    def act(guest: Guest[Queue]) -> None:
        for _ in range(25):
            guest.read(Queue.status)
            guest.write(Queue.base, 1)

    assert found(act, spin=10) == {}


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


def masked(guest: Guest[Queue]) -> None:
    mask(guest, True)
    guest.write(Queue.secret, 3)
    guest.advance(1.1)


def test_a_vector_that_stays_masked_is_a_mistake() -> None:
    assert found(masked) == {"MSI-X 1 has been pending for 1 s: it is masked": 1}


def test_a_vector_that_is_unmasked_in_time_is_none() -> None:
    def act(guest: Guest[Queue]) -> None:
        mask(guest, True)
        guest.write(Queue.secret, 3)
        mask(guest, False)
        guest.advance(2)

    assert found(act) == {}


def resetting(*told: int, then: float = 0.0) -> Act:
    def act(guest: Guest[Queue]) -> None:
        for value in told:
            guest.write(Queue.secret, value)
        if then:
            guest.advance(then)
        guest.reset()

    return act


@pytest.mark.parametrize(
    ("act", "why"), [(resetting(4), "1 of its timers are running"), (resetting(5), "jobs of its pool are running")]
)
def test_a_reset_in_the_middle_of_work_is_a_mistake(act: Act, why: str, caplog: pytest.LogCaptureFixture) -> None:
    assert found(act) == {"a reset in the middle of what a driver has started": 1}
    assert why in caplog.text


@pytest.mark.parametrize(
    "act", [resetting(4, then=6), resetting(5, then=1), resetting(6, then=1)], ids=["timer", "job", "periodic timer"]
)
def test_a_reset_when_work_has_ended_is_none(act: Act) -> None:
    assert found(act) == {}


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda guest: (guest.write(Queue.secret, 1), guest.advance(2)), "INTx has been high"),
        (masked, "MSI-X 1 has been pending"),
        (resetting(4), "a reset in the middle"),
    ],
)
def test_a_mistake_that_no_access_makes_fails_a_test_at_its_end(act: Act, said: str) -> None:
    with pytest.raises(DriverMistake, match=said):
        found(act, strict=True)


def test_a_test_that_fails_already_fails_by_its_own_error() -> None:
    def act(guest: Guest[Queue]) -> None:
        resetting(4)(guest)
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        found(act, strict=True)


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
    def act(guest: Guest[Queue]) -> None:
        for offset in range(0x100, 0x100 + 8 * MOST_OF_A_SORT, 4):
            guest.read(0, offset, 4)

    counts = found(act)
    assert len(counts) == MOST_OF_A_SORT + 1
    assert counts["other accesses to where nothing is"] == MOST_OF_A_SORT
