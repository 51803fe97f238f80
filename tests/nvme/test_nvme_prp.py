"""PRPs (§4.3): where a command's data lies, as stretches of guest memory."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from bellwire.bundled.nvme.command import Command
from bellwire.bundled.nvme.guest_pages import GuestPages
from bellwire.bundled.nvme.prp import Extent, extents
from bellwire.bundled.nvme.status import CommandError
from nvme.driver import Driver, TestMachine

PAGE = 4096
LISTS: dict[int, bytes] = {
    0x9000: struct.pack("<3Q", 0x3000, 0x4000, 0x8000),
    0x9FF8: struct.pack("<Q", 0xA000),  # the last entry of its page leads on
    0xA000: struct.pack("<2Q", 0x3000, 0x4000),
    0xB000: struct.pack("<2Q", 0x3000, 0x4800),
    0xBFF8: struct.pack("<Q", 0xA008),
}
read: list[tuple[int, int]] = []


def guest(address: int, size: int) -> bytes:
    read.append((address, size))
    return LISTS[address][:size]


@pytest.mark.parametrize(
    ("prp1", "prp2", "length", "expected"),
    [
        (0x2000, 0, PAGE, [(0x2000, PAGE)]),
        (0x2004, 0x7000, PAGE - 4, [(0x2004, PAGE - 4)]),
        (0x2004, 0x7000, PAGE, [(0x2004, PAGE - 4), (0x7000, 4)]),
        (0x2004, 0x3000, PAGE, [(0x2004, PAGE)]),
        (0x2800, 0x2000, PAGE, [(0x2800, 0x800), (0x2000, 0x800)]),
        (0x2800, 0x3000, 0x1800, [(0x2800, 0x1800)]),
        (0x2000, 0x9000, 3 * PAGE, [(0x2000, 3 * PAGE)]),
        (0x2800, 0x9000, 0x800 + 2 * PAGE + 4, [(0x2800, 0x800 + 2 * PAGE), (0x8000, 4)]),
        (0x7000, 0x9000, 3 * PAGE, [(0x7000, PAGE), (0x3000, 2 * PAGE)]),
        (0x2000, 0x9FF8, 3 * PAGE, [(0x2000, 3 * PAGE)]),
    ],
)
def test_neighbours_are_one_stretch(prp1: int, prp2: int, length: int, expected: list[Extent]) -> None:
    assert extents(prp1, prp2, length, guest) == expected


def test_a_list_is_read_as_far_as_it_counts() -> None:
    read.clear()
    extents(0x2000, 0x9FF8, 3 * PAGE, guest)
    extents(0x2000, 0x9000, 3 * PAGE, guest)
    assert read == [(0x9FF8, 8), (0xA000, 16), (0x9000, 16)]


@pytest.mark.parametrize(
    ("prp1", "prp2", "length", "parameter"),
    [
        (0x2001, 0, 512, 24),
        (0x2002, 0, 512, 24),
        (0x2000, 0x3004, 2 * PAGE, 32),
        (0x2000, 0x9004, 3 * PAGE, 32),
        (0x2000, 0xB000, 3 * PAGE, 32),  # its second page begins within a page
        (0x2000, 0xBFF8, 3 * PAGE, 32),  # the next list does
    ],
)
def test_an_address_that_is_not_aligned_is_an_invalid_offset(prp1: int, prp2: int, length: int, parameter: int) -> None:
    with pytest.raises(CommandError, match="INVALID_PRP_OFFSET") as refused:
        extents(prp1, prp2, length, guest)
    assert refused.value.parameter == parameter


@pytest.fixture
def pages(driver: Driver) -> GuestPages:
    assert isinstance(driver.machine, TestMachine)
    return driver.machine.guest.device.controller.pages


NOWHERE = [(0x1000, 512), (1 << 40, 512)]


@pytest.mark.parametrize("places", [NOWHERE[1:], NOWHERE], ids=["one", "several"])
def test_memory_that_is_not_there_is_a_data_transfer_error(pages: GuestPages, places: list[Extent]) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: pages.views(places, write=True),
        lambda: pages.gather(places),
        lambda: pages.scatter(places, bytes(1024)),
    ]
    for attempt in attempts:
        with pytest.raises(CommandError, match="DATA_TRANSFER_ERROR") as refused:
            attempt()
        assert refused.value.parameter == 24


def command(flags: int = 0, prp2: int = 0x1000) -> Command:
    return Command(0, flags, 0, 1, 0, 0, 0, prp2, 0, 0, 0, 0, 0, 0)


def test_a_list_that_is_not_there_is_the_second_pointers_fault(pages: GuestPages) -> None:
    with pytest.raises(CommandError, match="DATA_TRANSFER_ERROR") as refused:
        pages.extents(command(prp2=1 << 40), 3 * PAGE)
    assert refused.value.parameter == 32


def test_a_command_moves_a_mebibyte_at_most(pages: GuestPages, driver: Driver) -> None:
    driver.memory[0x1000:0x2000] = struct.pack("<512Q", *range(PAGE, 513 * PAGE, PAGE))
    assert pages.extents(command(), 1 << 20) == [(0, 1 << 20)]
    with pytest.raises(CommandError, match="INVALID_FIELD") as refused:
        pages.extents(command(), (1 << 20) + 1)
    assert refused.value.parameter == 48


@pytest.mark.parametrize("flags", [1, 2, 1 << 6, 1 << 7])
def test_a_command_with_sgls_or_a_fused_one_is_an_invalid_field(pages: GuestPages, flags: int) -> None:
    with pytest.raises(CommandError, match="INVALID_FIELD") as refused:
        pages.extents(command(flags), 512)
    assert refused.value.parameter == 1
    assert pages.extents(command(0b0011_1100), 512) == [(0, 512)]
