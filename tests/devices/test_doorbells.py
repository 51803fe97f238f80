"""Doorbells and stretches handed over whole, reached by message."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bellwire import Bar, PciDevice
from bellwire.testing import Guest


class Tower(PciDevice, vendor=0x1234, device=2, class_code=0xFF0000, name="tower"):
    mmio = Bar(0, size=256)
    plain = mmio.doorbell(0x00)
    queue0 = mmio.doorbell(0x10, match=0)
    queue1 = mmio.doorbell(0x10, match=1)
    below = mmio.reg(0x10)
    value = mmio.doorbell(0x20, value=True, size=2)
    stretch = mmio.ioregion(0x40, 20)

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[object] = []

    @plain.ring
    def plain_rang(self) -> None:
        self.heard.append("plain")

    @queue0.ring
    @queue1.ring
    def queue_rang(self) -> None:
        self.heard.append("queue")

    @value.ring
    def value_rang(self, value: int) -> None:
        self.heard.append(value)

    @stretch.read
    def stretch_read(self, offset: int, size: int) -> int:
        self.heard.append(("read", offset, size))
        return 0x0102_0304_0506_0708

    @stretch.write
    def stretch_written(self, offset: int, size: int, value: int) -> None:
        self.heard.append(("write", offset, size, value))


@pytest.fixture
def guest() -> Iterator[Guest[Tower]]:
    with Guest(Tower) as guest:
        yield guest


def heard(guest: Guest[Tower]) -> list[object]:
    assert isinstance(guest.device, Tower)
    return guest.device.heard


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_plain_doorbell_rings_for_any_value_and_size(guest: Guest[Tower], size: int) -> None:
    guest.write(Tower.plain, 0x1234_5678, size=size)
    assert heard(guest) == ["plain"]
    assert guest.device.plain.rung == 1


def test_a_doorbell_reads_as_nothing(guest: Guest[Tower]) -> None:
    assert guest.read(Tower.plain) == 0
    assert heard(guest) == []


def test_coalesced_rings_run_the_hook_once_and_count_exactly(guest: Guest[Tower]) -> None:
    guest.device.core.ring(Tower.plain, 41)
    assert heard(guest) == ["plain"]
    assert guest.device.plain.rung == 41


def test_matched_doorbells_ring_for_their_own_value(guest: Guest[Tower]) -> None:
    guest.write(Tower.queue0, 1)
    device = guest.device
    assert (device.queue0.rung, device.queue1.rung) == (0, 1)


def test_a_value_that_nothing_matches_is_an_ordinary_write(guest: Guest[Tower]) -> None:
    guest.write(Tower.queue0, 7)
    assert guest.read(Tower.below) == 7
    assert heard(guest) == []


def test_a_match_of_another_size_does_not_ring(guest: Guest[Tower]) -> None:
    guest.write(Tower.queue0, 1, size=2)
    assert heard(guest) == []
    assert guest.read(Tower.below) == 1


def test_a_value_doorbell_gets_every_value_in_order(guest: Guest[Tower]) -> None:
    for value in (3, 1, 2):
        guest.write(Tower.value, value)
    guest.ring(Tower.value, 0x1_0004)
    assert heard(guest) == [3, 1, 2, 4]


def test_a_write_into_the_middle_of_a_doorbell_does_not_ring(guest: Guest[Tower]) -> None:
    guest.write(Tower.plain, 1, offset=2, size=2)
    assert heard(guest) == []


def test_a_stretch_sees_offset_size_and_value(guest: Guest[Tower]) -> None:
    guest.write(Tower.stretch, 0xABCD, offset=3, size=2)
    assert heard(guest) == [("write", 3, 2, 0xABCD)]


def test_a_stretch_gives_what_its_hook_gives_cut_to_size(guest: Guest[Tower]) -> None:
    assert guest.read(Tower.stretch, offset=4, size=2) == 0x0708


def test_a_long_access_of_a_stretch_comes_in_pieces(guest: Guest[Tower]) -> None:
    guest.device.core.read(0, 0x40, 20)
    assert heard(guest) == [("read", 0, 8), ("read", 8, 8), ("read", 16, 4)]


def test_reset_clears_the_counts(guest: Guest[Tower]) -> None:
    guest.write(Tower.plain, 1)
    guest.device.core.reset()
    assert guest.device.plain.rung == 0
