"""At debug level a device tells what it does, by the filter ``trace``; otherwise nothing of that is even built."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from bellwire import Bar, MsiX, PciDevice
from bellwire.bundled.edu import Edu
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


def told(log: pytest.LogCaptureFixture) -> list[str]:
    """The lines without how long hooks took, and without the warning of a slow hook, where the machine is busy."""
    lines = [record.getMessage() for record in log.records if record.levelno == logging.DEBUG]
    return [re.sub(r" [0-9.]+ ms$", "", line) for line in lines]


def test_a_ring_its_dma_its_interrupt_and_its_hook_are_told_in_order(at_debug: pytest.LogCaptureFixture) -> None:
    with Guest(Copier) as guest:
        guest.write(Copier.size, 5)
        guest.memory[0x1000:0x1005] = b"bytes"
        at_debug.clear()
        guest.ring(Copier.go)
        guest.ring(Copier.number, 0x3001)
        lines = told(at_debug)
    assert lines == [
        "ring    go by message  BAR0+0x8",
        "dma     read 5 bytes: 62797465 73  0x1000",
        "dma     write 5 bytes: 62797465 73  0x2000",
        "irq     MSI-X 1 sent",
        "hook    copy()",
        "ring    number = 0x00003001 by message  BAR0+0x10",
        "dma     view 16 bytes to read in place  0x3001",
        "hook    take(0x3001)",
    ]


def test_a_served_device_tells_registers_by_name_with_what_they_mean(at_debug: pytest.LogCaptureFixture) -> None:
    with at_debug.at_level(logging.DEBUG, "bellwire.device.edu"), served(Edu()) as client:
        at_debug.clear()
        write(client, Edu.status.offset, 0x80)
        read(client, Edu.status.offset)
        lines = told(at_debug)
    assert "write   status = 0x00000080 IRQ_WHEN_DONE  BAR0+0x20" in lines
    assert "read    status = 0x00000080 IRQ_WHEN_DONE  BAR0+0x20" in lines


def test_a_hook_that_raises_is_told_with_the_reason(at_debug: pytest.LogCaptureFixture) -> None:
    with Guest(Copier) as guest:
        at_debug.clear()
        with pytest.raises(Exception, match="0xf0000000"):
            guest.ring(Copier.number, 0xF000_0000)
        assert any(line.startswith("hook    take(0xf0000000) ! ") for line in told(at_debug))


def test_a_device_that_is_not_watched_has_no_filter() -> None:
    device = Probe()
    with Guest(device) as guest:
        assert len(guest.filters) == 0
        assert type(device.core.signals) is Signals
        assert "read" not in vars(device.core)


def test_a_device_at_debug_level_says_nothing_at_other_levels(at_debug: pytest.LogCaptureFixture) -> None:
    with Guest(Copier) as guest:
        guest.read(Copier.left)
    assert {record.levelno for record in at_debug.records} == {logging.DEBUG}
