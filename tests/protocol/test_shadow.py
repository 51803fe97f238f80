"""Shadow doorbells: the server's memory for values, and the client's end."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from vfio_user import Cells, ShadowBell, ShadowIoEventFd, VfioUserError

SIZES = [1, 2, 4, 8]


@pytest.fixture
def cells() -> Iterator[Cells]:
    with closing(Cells(600)) as cells:
        yield cells


@pytest.mark.parametrize("size", SIZES)
def test_a_ring_stores_the_value_and_signals(cells: Cells, eventfd: Callable[[], int], size: int) -> None:
    fd, (offset, cell) = eventfd(), cells.take(size)
    value = int.from_bytes(bytes(range(0xF1, 0xF1 + size)), "little")
    with closing(ShadowBell(ShadowIoEventFd(0, size, fd, cells.fd, offset))) as bell:
        bell.ring(value.to_bytes(size, "little"))
        bell.ring(value.to_bytes(size, "little"))
        assert cell[0] == value
        assert os.eventfd_read(fd) == 2


def test_cells_lie_apart_and_a_value_touches_its_own_alone(cells: Cells, eventfd: Callable[[], int]) -> None:
    fd = eventfd()
    taken = [cells.take(8) for _ in range(600)]
    assert len({offset // 8 for offset, _ in taken}) == 600
    offset, _ = taken[300]
    with closing(ShadowBell(ShadowIoEventFd(0, 8, fd, cells.fd, offset))) as bell:
        bell.ring(b"\xff" * 8)
    assert [place for place, cell in taken if cell[0]] == [offset]


def test_a_peer_can_neither_shrink_nor_grow_nor_unseal_the_cells(cells: Cells) -> None:
    for size in (0, 4096, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(cells.fd, size)


def test_a_full_counter_is_not_waited_for(cells: Cells, eventfd: Callable[[], int]) -> None:
    fd, (offset, cell) = eventfd(), cells.take(4)
    os.set_blocking(fd, True)
    with closing(ShadowBell(ShadowIoEventFd(0, 4, fd, cells.fd, offset))) as bell:
        os.eventfd_write(fd, (1 << 64) - 2)
        bell.ring(b"\1\0\0\0")
        assert cell[0] == 1


def test_the_address_is_where_the_cell_is_mapped(cells: Cells, eventfd: Callable[[], int]) -> None:
    offset, cell = cells.take(4)
    cell[0] = 0x1234_5678
    with closing(ShadowBell(ShadowIoEventFd(0, 4, eventfd(), cells.fd, offset))) as bell:
        assert ctypes.c_uint32.from_address(bell.address).value == 0x1234_5678
        assert bell.sealed


def test_a_file_that_may_shrink_is_told(eventfd: Callable[[], int], memfd: Callable[[int], int]) -> None:
    with closing(ShadowBell(ShadowIoEventFd(0, 4, eventfd(), memfd(4096), 0))) as bell:
        assert not bell.sealed


def test_a_file_whose_owner_allows_it_is_sealed_against_shrinking(eventfd: Callable[[], int]) -> None:
    fd = os.memfd_create("cells", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, 4096)
        with closing(ShadowBell(ShadowIoEventFd(0, 4, eventfd(), fd, 0))) as bell:
            assert bell.sealed
            with pytest.raises(PermissionError):
                os.ftruncate(fd, 0)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("size", "place", "why"),
    [
        (0, 0, "no room for a value"),
        (3, 0, "no room for a value"),
        (4, 2, "no multiple of 4"),
        (8, 4, "no multiple of 8"),
        (4, 4096, "too few"),
        (8, (1 << 64) - 8, "too few"),
    ],
)
def test_a_cell_that_cannot_be_is_refused(
    eventfd: Callable[[], int], memfd: Callable[[int], int], size: int, place: int, why: str
) -> None:
    with pytest.raises(VfioUserError, match=why):
        ShadowBell(ShadowIoEventFd(0, size, eventfd(), memfd(4096), place))


def test_a_descriptor_that_is_no_eventfd_is_refused(memfd: Callable[[int], int]) -> None:
    fd = memfd(4096)
    with pytest.raises(VfioUserError, match="is no eventfd"):
        ShadowBell(ShadowIoEventFd(0, 4, fd, fd, 0))


def test_memory_that_cannot_be_written_is_refused(eventfd: Callable[[], int], memfd: Callable[[int], int]) -> None:
    reading = os.open(f"/proc/self/fd/{memfd(4096)}", os.O_RDONLY)
    try:
        with pytest.raises(VfioUserError, match="Permission denied"):
            ShadowBell(ShadowIoEventFd(0, 4, eventfd(), reading, 0))
    finally:
        os.close(reading)
