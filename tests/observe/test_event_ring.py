"""The event ring: records in a file that others read, also after its writer has died, and that nobody trusts."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire.filters.observing.event_ring import FIRST_SLOT, SLOT, EventRing, RingError, RingReader
from bellwire.filters.observing.record import Record


@pytest.fixture
def ring() -> Iterator[EventRing]:
    made = EventRing(16)
    yield made
    made.close()


def names(reader: RingReader, after: int = 0) -> list[tuple[int, str]]:
    return [(number, record.name) for number, record in reader.after(after)]


def test_a_reader_gets_what_came_after_a_number(ring: EventRing) -> None:
    reader = RingReader(ring.fd)
    for name in "abc":
        ring.add(Record(1.0, "read", name))
    assert names(reader) == [(1, "a"), (2, "b"), (3, "c")]
    assert names(reader, after=2) == [(3, "c")]
    assert [record.name for _, record in reader.last(2)] == ["b", "c"]


def test_the_oldest_records_make_room(ring: EventRing) -> None:
    for number in range(40):
        ring.add(Record(1.0, "read", str(number)))
    assert [name for _, name in names(RingReader(ring.fd))] == [str(number) for number in range(24, 40)]


def test_a_record_survives_as_it_was(ring: EventRing) -> None:
    record = Record(1.5, "read", "status", "", "mmio", "BAR0+0x14", 4, 3, "DONE|ERROR", "ioregionfd", 0.25)
    ring.add(record)
    assert [found for _, found in RingReader(ring.fd).after(0)] == [record]


@given(st.builds(Record, st.floats(0, 2**40), st.just("hook"), *[st.text(max_size=60)] * 5))
def test_the_longest_record_fits_or_is_left_out(record: Record) -> None:
    ring = EventRing(16)
    try:
        ring.add(record)
        ring.add(Record(1.0, "read", "next"))
        found = [each for _, each in RingReader(ring.fd).after(0)]
        assert found[-1].name == "next"
        assert found[:-1] in ([], [record])
    finally:
        ring.close()


def forged(ring: EventRing, at: int, data: bytes) -> int:
    """A copy of the ring's file with other bytes at an offset."""
    copy = os.memfd_create("forged")
    content = bytearray(os.pread(ring.fd, os.fstat(ring.fd).st_size, 0))
    content[at : at + len(data)] = data
    os.write(copy, content)
    return copy


def test_a_record_that_is_being_overwritten_is_skipped(ring: EventRing) -> None:
    ring.add(Record(1.0, "read", "a"))
    ring.add(Record(1.0, "read", "b"))
    copy = forged(ring, FIRST_SLOT + SLOT, bytes(8))
    try:
        assert names(RingReader(copy)) == [(2, "b")]
    finally:
        os.close(copy)


def test_a_reader_cannot_change_the_file(ring: EventRing) -> None:
    with pytest.raises(PermissionError):
        os.pwrite(ring.fd, b"x", FIRST_SLOT)
    with pytest.raises(PermissionError):
        os.ftruncate(ring.fd, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(ring.fd, FIRST_SLOT)


def test_a_reader_outlives_the_writer() -> None:
    ring = EventRing(16)
    ring.add(Record(1.0, "read", "a"))
    reader = RingReader(ring.fd)
    ring.close()
    assert names(reader) == [(1, "a")]


@given(st.binary(max_size=3 * SLOT), st.integers(0, 2**64 - 1))
def test_junk_in_the_slots_gives_records_or_nothing(junk: bytes, head: int) -> None:
    ring = EventRing(16)
    try:
        copy = forged(ring, 16, head.to_bytes(8, "little").ljust(FIRST_SLOT - 16, b"\0") + junk)
        try:
            assert all(isinstance(record, Record) for _, record in RingReader(copy).after(0))
        finally:
            os.close(copy)
    finally:
        ring.close()


@pytest.mark.parametrize("content", [b"", b"x", bytes(FIRST_SLOT + 16 * SLOT)])
def test_a_file_that_is_no_ring_is_refused(content: bytes) -> None:
    fd = os.memfd_create("junk")
    try:
        os.write(fd, content)
        with pytest.raises(RingError):
            RingReader(fd)
    finally:
        os.close(fd)
