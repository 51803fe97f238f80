"""At debug level a device tells what it does; otherwise nothing of that is even built."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from bellwire import Bar, MsiX, PciDevice
from bellwire.bundled.edu import Edu
from bellwire.model.core import Core
from bellwire.model.dma import Dma
from bellwire.model.signals import Signals
from bellwire.testing import Guest
from devices.serving import Probe, read, served, write


class Copier(PciDevice, vendor=0x1234, device=0x11F0, class_code=0x088000, name="copier"):
    """Copies, and interrupts."""

    irq = MsiX(2)
    mmio = Bar(0, size=4096)
    size = mmio.reg(0x00, size=2)
    go = mmio.doorbell(0x08)
    number = mmio.doorbell(0x10, value=True)
    left = mmio.reg(0x18)

    @go.ring
    def copy(self) -> None:
        self.dma.write(0x2000, self.dma.read(0x1000, self.size))
        self.irq[1].trigger()

    @number.ring
    def take(self, value: int) -> None:
        self.dma.map(value, 16)

    @left.read
    def look(self) -> int:
        return 0x12


@pytest.fixture
def at_debug(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG, "bellwire.device.copier"):
        yield caplog


def without_times(log: pytest.LogCaptureFixture) -> list[str]:
    """And without the warning of a slow hook, where the machine is busy."""
    return [record.getMessage().partition(" after ")[0] for record in log.records if record.levelno == logging.DEBUG]


def test_a_ring_its_hook_its_dma_and_its_interrupt_are_told_in_order(at_debug: pytest.LogCaptureFixture) -> None:
    with Guest(Copier) as guest:
        guest.write(Copier.size, 5)
        at_debug.clear()
        guest.ring(Copier.go)
        guest.ring(Copier.number, 0x3001)
        told = without_times(at_debug)
    assert told == [
        "go is rung",
        "copy() begins",
        "DMA read of 5 bytes at 0x1000",
        "DMA write of 5 bytes at 0x2000",
        "MSIX 1 is sent",
        "copy ends",
        "number is rung with 0x3001",
        "take(0x3001) begins",
        "DMA of 16 bytes at 0x3001, to be read in place",
        "take ends",
    ]


def test_registers_are_told_by_name_with_what_they_mean(at_debug: pytest.LogCaptureFixture) -> None:
    with at_debug.at_level(logging.DEBUG, "bellwire.device.edu"), served(Edu()) as client:
        at_debug.clear()
        write(client, Edu.status.offset, 0x80)
        read(client, Edu.status.offset)
        told = at_debug.messages
    assert "guest writes status (BAR0+0x20): 0x00000080 (IRQ_WHEN_DONE)" in told
    assert "guest reads status (BAR0+0x20): 0x00000080 (IRQ_WHEN_DONE)" in told


def test_a_hook_says_what_it_gives_and_what_it_raises(at_debug: pytest.LogCaptureFixture) -> None:
    with Guest(Copier) as guest:
        at_debug.clear()
        guest.read(Copier.left)
        with pytest.raises(Exception, match="DMA map"):
            guest.ring(Copier.number, 0xF000_0000)
    assert [message for message in at_debug.messages if "and gives 0x12" in message]
    (raised,) = [message for message in at_debug.messages if message.startswith("take raises GuestError(")]
    milliseconds = re.search(r" after ([0-9.]+) ms$", raised)
    assert milliseconds
    assert 0 <= float(milliseconds[1]) < 10_000


def test_a_device_that_is_not_watched_is_built_without_any_of_it() -> None:
    device = Probe()
    assert (type(device.core), type(device.dma), type(device.core.signals)) == (Core, Dma, Signals)


def test_a_reset_is_told_and_done(at_debug: pytest.LogCaptureFixture) -> None:
    with Guest(Copier) as guest:
        guest.write(Copier.size, 5)
        at_debug.clear()
        guest.reset()
        assert without_times(at_debug)[0] == "reset"
        assert guest.read(Copier.size) == 0


def test_an_interrupt_that_waits_is_told_as_such(at_debug: pytest.LogCaptureFixture) -> None:
    with Guest(Copier) as guest:
        guest.config_write(guest.device.core.config.at[0x11] + 2, 0xC000, 2)
        at_debug.clear()
        guest.device.irq[0].trigger()
        assert without_times(at_debug) == ["MSIX 0 is left pending: the guest has it masked, or has not asked for it"]


def test_what_is_long_or_has_no_name_is_shortened(at_debug: pytest.LogCaptureFixture) -> None:
    with Guest(Copier) as guest:
        at_debug.clear()
        device = guest.device
        device.core.call(lambda *_: "x" * 100, "y" * 61, 255, True, "z" * 58)
        device.core.write(0, 0x20, memoryview(bytes(9)))
        device.core.write(0, 0x20, memoryview(bytes(8)))
        device.core.read(7, 0, 2)
        told = without_times(at_debug)
    assert told[0] == f"<lambda>('{'y' * 56}..., 0xff, True, '{'z' * 58}') begins"
    assert any(f"and gives '{'x' * 56}..." in record.getMessage() for record in at_debug.records)
    assert "guest writes BAR 0, where nothing is (BAR0+0x20): 9 bytes" in told
    assert "guest writes BAR 0, where nothing is (BAR0+0x20): 0x0000000000000000" in told
    assert "guest reads config space+0x0: 0x1234" in told


def test_rings_are_told_with_their_number(at_debug: pytest.LogCaptureFixture) -> None:
    with Guest(Copier) as guest:
        at_debug.clear()
        guest.device.core.ring(Copier.go, 3)
        assert without_times(at_debug)[0] == "go is rung 3 times"
