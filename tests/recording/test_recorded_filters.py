"""A recording under filters that lose, delay or change what a device does is replayed identically, without them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwire import GuestError
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.faults import FailedCommand
from bellwire.faults.dma import FailedDma, LateDma, LostDma
from bellwire.faults.interrupts import DoubleIrq, IrqStorm, LateIrq, LostIrq, WrongVector
from bellwire.faults.presence import Gone, Hung, LinkDown, SlowReset
from bellwire.faults.registers import DoubleWrite, LateWrite, Slow
from bellwire.filters import Filter, FilterError
from bellwire.filters.builtin.delay import Delay
from bellwire.recording import Record, replay
from bellwire.recording.format import Body, entries
from bellwire.testing import Guest
from recording.test_recording import Thing

pytestmark = pytest.mark.slow

MSIX_BAR, PENDING = 5, 4 * 16
MASKED, UNMASKED, OFF = 0xC000, 0x8000, 0


def messages(guest: Guest[Thing]) -> None:
    """A guest that uses vectors, masked and unmasked ones, and memory."""
    control = guest.device.core.config.at[0x11] + 2
    for mask in (UNMASKED, MASKED, MASKED):
        guest.config_write(control, mask, 2)
        for _ in range(4):
            work(guest)
            advance(guest, 0.013)
            guest.read(MSIX_BAR, PENDING, 8)
            guest.read(Thing.total)
        guest.config_write(control, UNMASKED, 2)
        advance(guest, 1)
        guest.read(MSIX_BAR, PENDING, 8)
        guest.read(Thing.status)
    work(guest)
    guest.reset()
    guest.read(Thing.total)
    advance(guest, 2)
    guest.read(Thing.total)


def work(guest: Guest[Thing]) -> None:
    """Let the device interrupt, and write to memory, and bear that it cannot."""
    guest.write(Thing.later, 5)
    with contextlib.suppress(GuestError):
        guest.ring(Thing.bell)
    with contextlib.suppress(GuestError):
        guest.write(Thing.store, 0x2000)


def advance(guest: Guest[Thing], seconds: float) -> None:
    """Let time pass, and bear that the device cannot interrupt."""
    with contextlib.suppress(GuestError):
        guest.advance(seconds)


def line(guest: Guest[Thing]) -> None:
    """A guest that uses INTx, and looks whether the device asserts it."""
    guest.config_write(guest.device.core.config.at[0x11] + 2, OFF, 2)
    for seconds in (0, 0.03, 0.001, 0.03):
        for value in (1, 0, 1, 0):
            guest.write(Thing.level, value)
            guest.advance(seconds)
            guest.config_read(6, 2)
    guest.write(Thing.level, 1)
    guest.reset()
    guest.config_read(6, 2)
    guest.advance(1)
    guest.config_read(6, 2)


def lasting(kind: type[Filter], **arguments: object) -> Filter:
    return kind(**{"for": "200ms"}, **arguments)


FILTERS: dict[str, Callable[[], list[Filter]]] = {
    "late-irq": lambda: [LateIrq(by="20ms")],
    "late-irq, some": lambda: [LateIrq(by="20ms", every=3)],
    "late-irq, longer than a pause": lambda: [LateIrq(by="200ms")],
    "delay:interrupt": lambda: [Delay(interrupt="20ms")],
    "delay:dma_write": lambda: [Delay(dma_write="20ms")],
    "delay of all": lambda: [Delay(dma_write="20ms", interrupt="7ms", write="2ms", read="1ms", ring="1ms")],
    "late-dma": lambda: [LateDma(by="20ms")],
    "lost-dma": lambda: [LostDma(every=2)],
    "failed-dma": lambda: [FailedDma(way="write", every=2)],
    "lost-irq": lambda: [LostIrq(every=2)],
    "double-irq": lambda: [DoubleIrq(every=2)],
    "wrong-vector": lambda: [WrongVector(every=2)],
    "irq-storm": lambda: [IrqStorm(every=2)],
    "late-irq by wrong-vector": lambda: [LateIrq(by="20ms"), WrongVector(every=2)],
    "hung at an event": lambda: [lasting(Hung, at=5)],
    "hung at times": lambda: [lasting(Hung, every=11)],
    "gone": lambda: [lasting(Gone, at=5)],
    "link-down": lambda: [lasting(LinkDown, at=5)],
    "slow-reset": lambda: [SlowReset(by="100ms")],
    "late-write": lambda: [LateWrite(by="20ms")],
    "slow": lambda: [Slow(by="2ms")],
}


@pytest.mark.parametrize("session", [messages, line])
@pytest.mark.parametrize("filters", list(FILTERS.values()), ids=list(FILTERS))
def test_what_a_filter_does_to_the_device_is_replayed_without_it(
    filters: Callable[[], list[Filter]], session: Callable[[Guest[Thing]], None], tmp_path: Path
) -> None:
    device = Thing()
    taken = Record(device, os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), 1 << 24)
    with Guest(device, filters=[*filters(), taken]) as guest:
        session(guest)
    outcome = replay(tmp_path / "a", Thing)
    assert ([str(each) for each in outcome.differences], outcome.complete) == ([], True)


def test_a_fault_inside_the_device_does_not_go_with_a_recording(tmp_path: Path) -> None:
    fault = FailedCommand(at=5)
    for before, after in (([fault], []), ([], [fault])):
        device = Nvme(size="16M")
        taken = Record(device, os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), 1 << 24)
        with pytest.raises(FilterError, match="nvme-status does not go with a recording"):  # noqa: SIM117
            with Guest(device, filters=[*before, taken, *after]):
                pass


def test_a_filter_that_is_put_in_later_stands_in_front_of_the_recording(tmp_path: Path) -> None:
    device = Thing()
    taken = Record(device, os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), 1 << 24)
    with Guest(device, filters=[taken]) as guest:
        guest.write(Thing.total, 1)
        guest.filters.add(DoubleWrite())
        guest.filters.add(LateWrite(by="20ms"), place=7)
        guest.write(Thing.level, 1)
        guest.advance(1)
        assert [label for label, _ in guest.filters] == ["double-write", "late-write", "record"]
    assert replay(tmp_path / "a", Thing).differences == []
    times = [Body(entry) for entry in entries(tmp_path / "a") if entry.kind == "W"][-1]
    assert [times.number() for _ in range(4)][3] == 2
