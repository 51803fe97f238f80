"""What a device may ask of the SDK about itself, and how it resets less than a reset does."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from bellwire import Bar, GuestError, MsiX, PciDevice, Saved, SavedBytes
from bellwire.model import capabilities as pci
from bellwire.testing import Guest


class Asked(PciDevice, vendor=0x1234, device=0x0A5C, class_code=0x088000):
    irq = MsiX(1)
    mmio = Bar(0, size=4096)
    ports = Bar(1, size=16, io=True)
    first = mmio.reg(0x00, reset=7)
    second = mmio.reg(0x04, reset=9)
    bell = mmio.doorbell(0x08)
    port = ports.reg(0x00, reset=3)
    count = Saved(0)
    buffer = SavedBytes(4)

    @first.read
    def read_first(self) -> int:
        return 0xF1

    @bell.ring
    def rung(self) -> None: ...


@pytest.fixture
def guest() -> Iterator[Guest[Asked]]:
    with Guest(Asked) as guest:
        yield guest


def disturbed(guest: Guest[Asked]) -> Asked:
    device = guest.device
    device.first, device.second, device.port, device.count = 1, 2, 4, 5
    device.buffer[:] = b"full"
    guest.ring(Asked.bell)
    return device


def test_a_soft_reset_brings_registers_and_fields_back(guest: Guest[Asked]) -> None:
    device = disturbed(guest)
    device.reset_registers()
    assert (device.first, device.second, device.port, device.count) == (7, 9, 3, 0)
    assert (bytes(device.buffer), device.bell.rung) == (bytes(4), 0)


def test_a_soft_reset_spares_what_is_to_be_kept(guest: Guest[Asked]) -> None:
    device = disturbed(guest)
    device.reset_registers(keep=[Asked.second, Asked.ports, Asked.count, Asked.buffer, Asked.bell])
    assert (device.first, device.second, device.port, device.count) == (7, 2, 4, 5)
    assert (bytes(device.buffer), device.bell.rung) == (b"full", 1)


def test_a_soft_reset_leaves_config_space_and_interrupts_alone(guest: Guest[Asked]) -> None:
    before = guest.config_read(pci.COMMAND, 2)
    guest.device.reset_registers()
    assert guest.config_read(pci.COMMAND, 2) == before
    guest.device.irq[0].trigger()
    assert sum(guest.interrupts.values()) == 1


def test_storage_has_what_is_stored_whatever_a_read_hook_says(guest: Guest[Asked]) -> None:
    assert guest.read(Asked.first) == 0xF1
    assert Asked.first.load(guest.device.storage(Asked.mmio)) == 7


def test_a_device_reaches_its_own_bars_as_a_guest_would(guest: Guest[Asked]) -> None:
    device = guest.device
    assert device.read_bar(0, 0x00, 4) == b"\xf1\0\0\0"
    device.write_bar(1, 0, b"\x22\0\0\0")
    assert device.port == 0x22


@pytest.mark.parametrize(("index", "offset", "size"), [(0, 4096, 1), (0, -1, 4), (1, 14, 4), (2, 0, 4), (9, 0, 1)])
def test_beyond_a_bar_there_is_nothing_to_reach(guest: Guest[Asked], index: int, offset: int, size: int) -> None:
    with pytest.raises(GuestError, match=f"of BAR {index}, which has"):
        guest.device.read_bar(index, offset, size)
    with pytest.raises(GuestError, match=f"of BAR {index}, which has"):
        guest.device.write_bar(index, offset, bytes(size))


def test_the_device_knows_whether_it_may_do_dma(guest: Guest[Asked]) -> None:
    device = guest.device
    assert device.connected
    assert device.bus_master
    seen = device.dma.changes
    guest.config_write(pci.COMMAND, 0, 2)
    assert not device.bus_master
    assert device.dma.changes > seen


def test_a_guest_cannot_flood_the_log_by_warnings(guest: Guest[Asked], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for number in range(100):
            guest.device.warn("the guest asks for %d", number)
    assert caplog.messages[0] == "the guest asks for 0"
    assert len(caplog.messages) < 10
