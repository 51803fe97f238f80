"""Resizable BAR (PCIe 6.0 §7.8.6): what the guest chooses, and what a client sees of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from bellwire import Bar, DeclarationError, PciDevice, ResizableBars
from bellwire.model import capabilities as pci
from bellwire.testing import Guest, conformance, serve
from vfio_user import Client, RegionIndex, RemoteError

MIB = 1 << 20


class Card(PciDevice, vendor=0x1234, device=0xBA20, class_code=0x088000):
    """Has memory of which the guest sees 1, 4 or 16 MiB."""

    frame = Bar(0, size=16 * MIB, bits=64, prefetchable=True)
    mark = frame.reg(0x2000)
    near = frame.area(0, 0x1000)
    far = frame.area(8 * MIB, 0x1000)
    plain = Bar(2, size=2 * MIB)
    sizes = ResizableBars({frame: (MIB, 4 * MIB, 16 * MIB), plain: (2 * MIB,)})


TestCard = conformance(Card)


@pytest.fixture
def guest() -> Iterator[Guest[Card]]:
    with Guest(Card) as guest:
        yield guest


def control(guest: Guest[Card]) -> int:
    return guest.read(Card.sizes.controls[Card.frame])


def choose(guest: Guest[Card], code: int) -> None:
    guest.write(Card.sizes.controls[Card.frame], code << 8)


def said(guest: Guest[Card]) -> int:
    """The size that the BAR itself says."""
    guest.config_write(pci.BAR0, (1 << 64) - 1, 8)
    return (~(guest.config_read(pci.BAR0, 8) & ~0xF) & (1 << 64) - 1) + 1


def test_the_capability_says_which_sizes_there_are(guest: Guest[Card]) -> None:
    at = guest.capability(Card.sizes)
    assert guest.config_read(at + 4, 4) == (1 | 1 << 2 | 1 << 4) << 4
    assert control(guest) == 2 << 5 | 0
    assert guest.config_read(at + 12, 4) == 1 << 5
    assert guest.config_read(at + 16, 4) == 2 | 1 << 8


def test_a_bar_has_its_first_size_after_a_reset(guest: Guest[Card]) -> None:
    assert said(guest) == MIB
    assert guest.device.sizes[Card.frame] == MIB
    choose(guest, 4)
    guest.reset()
    assert said(guest) == MIB
    assert guest.device.core.region_size(0) == MIB


@pytest.mark.parametrize(("code", "size"), [(0, MIB), (2, 4 * MIB), (4, 16 * MIB)])
def test_the_guest_chooses(guest: Guest[Card], code: int, size: int) -> None:
    choose(guest, code)
    assert control(guest) >> 8 & 0x3F == code
    assert said(guest) == size
    assert guest.device.core.region_size(0) == size


def test_the_address_keeps_no_bits_below_the_size(guest: Guest[Card]) -> None:
    guest.config_write(pci.BAR0, 0x12_3450_0000, 8)
    choose(guest, 4)
    assert guest.config_read(pci.BAR0, 8) == 0x12_3400_000C


@pytest.mark.parametrize("code", [1, 3, 5, 43, 63])
def test_a_size_that_is_not_offered_changes_nothing(guest: Guest[Card], code: int) -> None:
    choose(guest, 2)
    choose(guest, code)
    assert control(guest) >> 8 & 0x3F == 2
    assert said(guest) == 4 * MIB


def test_a_snapshot_has_the_size(guest: Guest[Card]) -> None:
    choose(guest, 2)
    with Guest(Card) as other:
        other.restore(guest.snapshot())
        assert said(other) == 4 * MIB
        assert other.device.core.region_size(0) == 4 * MIB


def test_a_client_is_told_the_size_and_may_access_no_more() -> None:
    with serve(Card) as served, Client.connect(served.path) as client:

        def sizes() -> tuple[int, list[int]]:
            info, fd = client.region_info(0)
            assert fd is not None
            os.close(fd)
            return info.size, [area.offset for area in info.areas]

        at = Card.layout.extended[0].at + Card.sizes.controls[Card.frame].offset
        assert sizes() == (MIB, [0])
        with pytest.raises(RemoteError):
            client.read(0, MIB, 4)
        client.write(RegionIndex.CONFIG, at, (4 << 8).to_bytes(4, "little"))
        assert sizes() == (16 * MIB, [0, 8 * MIB])
        assert client.read(0, MIB, 4) == bytes(4)
        client.reset()
        assert sizes() == (MIB, [0])
        with pytest.raises(RemoteError):
            client.read(0, MIB, 4)


def wrong(**body: Any) -> str:
    with pytest.raises(DeclarationError) as refused:
        type("Wrong", (PciDevice,), body)
    return str(refused.value)


def test_mistakes_are_refused() -> None:
    frame = Bar(0, size=2 * MIB)
    assert "a size is a power of two from 1 MiB to 64 GiB, not 0x1000" in wrong(
        f=frame, s=ResizableBars({frame: (4096,)})
    )
    frame = Bar(0, size=2 * MIB)
    assert "f has 0x200000 bytes: that is the largest size" in wrong(f=frame, s=ResizableBars({frame: (MIB,)}))
    frame = Bar(0, size=2 * MIB)
    assert "its BAR ? is not declared in Wrong" in wrong(s=ResizableBars({frame: (MIB, 2 * MIB)}))
    frame = Bar(0, size=2 * MIB)
    late = frame.ioregion(MIB, 16)
    assert "Wrong.late: it lies beyond 0x100000, the smallest size of f" in wrong(
        f=frame, late=late, s=ResizableBars({frame: (MIB, 2 * MIB)})
    )
    assert "1 to 6 BARs are resizable, not 0" in wrong(s=ResizableBars({}))
