"""Vendor-specific capabilities: where they lie, what a guest may write, and their hooks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bellwire import Bar, DeclarationError, PciDevice, VendorCapability
from bellwire.model import capabilities as pci
from bellwire.testing import Guest, conformance


class Keeper(PciDevice, vendor=0x1234, device=0x0E0E, class_code=0x088000):
    """Has two capabilities of its own."""

    mmio = Bar(0, size=4096)
    fixed = VendorCapability(b"\x01\x02\x03")
    open = VendorCapability(bytes(8), writable=b"\xff\x0f")

    def setup(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    @open.read
    def about_to_be_read(self, offset: int, size: int) -> None:
        self.seen.append(("read", offset, size))
        self.open[7] = 0x77

    @open.write
    def was_written(self, offset: int, size: int) -> None:
        self.seen.append(("write", offset, size))


TestKeeper = conformance(Keeper)


@pytest.fixture
def guest() -> Iterator[Guest[Keeper]]:
    with Guest(Keeper) as guest:
        yield guest


def body(guest: Guest[Keeper], capability: VendorCapability) -> int:
    return guest.device.core.config.vendor[capability]


def test_they_are_in_the_list_in_order_with_number_and_length(guest: Guest[Keeper]) -> None:
    found = []
    at = guest.config_read(pci.CAPABILITY_POINTER, 1)
    while at:
        if guest.config_read(at, 1) == pci.VENDOR:
            found.append((at + 3, guest.config_read(at + 2, 1)))
        at = guest.config_read(at + 1, 1)
    assert found == [(body(guest, Keeper.fixed), 6), (body(guest, Keeper.open), 11)]


def test_the_body_is_what_was_declared(guest: Guest[Keeper]) -> None:
    assert guest.config_read(body(guest, Keeper.fixed), 3) == 0x030201


def test_only_writable_bits_take(guest: Guest[Keeper]) -> None:
    guest.config_write(body(guest, Keeper.open), 0xFFFF_FFFF, 4)
    assert guest.config_read(body(guest, Keeper.open), 4) == 0x0000_0FFF
    guest.config_write(body(guest, Keeper.fixed), 0xFF, 1)
    assert guest.config_read(body(guest, Keeper.fixed), 1) == 0x01


def test_a_read_hook_runs_before_the_read(guest: Guest[Keeper]) -> None:
    assert guest.config_read(body(guest, Keeper.open) + 7, 1) == 0x77
    assert guest.device.seen == [("read", 7, 1)]  # Keeper's


def test_hooks_hear_of_their_own_bytes_only(guest: Guest[Keeper]) -> None:
    guest.config_write(body(guest, Keeper.open) - 2, 0, 4)
    assert guest.device.seen == [("write", 0, 2)]


def test_a_reset_brings_the_body_back(guest: Guest[Keeper]) -> None:
    guest.config_write(body(guest, Keeper.open), 0xFF, 1)
    guest.device.core.reset()
    assert guest.config_read(body(guest, Keeper.open), 1) == 0


def test_a_body_that_the_length_byte_cannot_say_is_refused() -> None:
    with pytest.raises(DeclarationError, match="1 to 252 bytes, not 253"):
        type("Wrong", (PciDevice,), {"long": VendorCapability(bytes(253))})


def test_more_than_the_list_has_room_for_is_refused() -> None:
    bodies = {f"part{n}": VendorCapability(bytes(45)) for n in range(3)}
    with pytest.raises(DeclarationError, match="part2: vendor-specific capabilities have 96 bytes together"):
        type("Wrong", (PciDevice,), bodies)
