"""Snapshots of sparse files: what is written is in them, and equal states give equal snapshots."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire import StateError
from bellwire.model.extents import PAGE, RECORD, Extent, pack, unpack

SIZE = 16 * PAGE
BOUNDS = ((24, SIZE), (PAGE, 5 * PAGE))


@contextmanager
def files() -> Iterator[list[Extent]]:
    """Two memory files, and the part of each that a snapshot has."""
    with ExitStack() as stack:
        extents = []
        for start, stop in BOUNDS:
            fd = os.memfd_create("extent", os.MFD_CLOEXEC)
            stack.callback(os.close, fd)
            os.ftruncate(fd, SIZE)
            extents.append(Extent(fd, memoryview(mmap.mmap(fd, SIZE)), start, stop))
        yield extents


writes = st.lists(st.tuples(st.integers(0, 1), st.integers(0, SIZE - 9), st.binary(min_size=1, max_size=9)), max_size=8)


@settings(max_examples=40)
@given(writes, writes)
def test_what_was_written_comes_back(first: list[tuple[int, int, bytes]], then: list[tuple[int, int, bytes]]) -> None:
    with files() as extents:
        for number, at, data in first:
            extents[number].view[at : at + len(data)] = data
        before = [bytes(extent.view[extent.start : extent.stop]) for extent in extents]
        outside = [bytes(extent.view[: extent.start]) for extent in extents]
        snapshot = pack(extents)
        for number, at, data in then:
            extent = extents[number]
            at = max(at, extent.start)
            data = data[: max(0, extent.stop - at)]
            extent.view[at : at + len(data)] = data
        unpack(extents, snapshot)
        assert [bytes(extent.view[extent.start : extent.stop]) for extent in extents] == before
        assert [bytes(extent.view[: extent.start]) for extent in extents] == outside
        assert pack(extents) == snapshot


def test_pages_of_zeros_are_left_out_whether_they_have_memory_or_not() -> None:
    with files() as extents:
        extents[0].view[3 * PAGE] = 1
        once = pack(extents)
        extents[0].view[5 * PAGE : 8 * PAGE] = bytes(3 * PAGE)
        assert pack(extents) == once
        assert len(once) == RECORD.size + PAGE


def test_neighbours_are_one_record() -> None:
    with files() as extents:
        extents[0].view[3 * PAGE] = extents[0].view[4 * PAGE] = extents[0].view[0x18] = 1
        assert len(pack(extents)) == 2 * RECORD.size + PAGE - 24 + 2 * PAGE


def record(number: int, start: int, data: bytes, count: int | None = None) -> bytes:
    return RECORD.pack(number, start, len(data) if count is None else count) + data


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (b"x", "1 bytes are left"),
        (record(2, PAGE, b"x"), "for range 2"),
        (record(0, 24, b"x", count=2), "record of 2 bytes for range 0, 1 are left"),
        (record(0, 24, b"x", count=(1 << 64) - 1), "1 are left"),
        (record(0, 23, b"x"), "lies outside its range"),
        (record(0, SIZE, b"x"), "lies outside its range"),
        (record(1, 5 * PAGE - 1, b"xx"), "lies outside its range"),
        (record(0, (1 << 64) - 1, b"xx"), "lies outside its range"),
        (record(0, 100, b"xx") + record(0, 101, b"x"), "out of order"),
        (record(1, PAGE, b"x") + record(0, 24, b"x"), "out of order"),
    ],
)
def test_records_that_cannot_be_are_refused_and_change_nothing(records: bytes, said: str) -> None:
    with files() as extents:
        extents[0].view[500] = 7
        before = pack(extents)
        with pytest.raises(StateError, match=said):
            unpack(extents, records)
        assert pack(extents) == before


@given(st.binary(max_size=60) | st.tuples(st.integers(0, 3), st.integers(0, 1 << 20), st.integers(0, 99)).map(
    lambda fields: struct.pack("<IQQ", *fields) + bytes(50)
))  # fmt: skip
def test_any_records_are_refused_or_taken(records: bytes) -> None:
    with files() as extents:
        try:
            unpack(extents, records)
        except StateError:
            return
        assert [len(extent.view) for extent in extents] == [SIZE, SIZE]
