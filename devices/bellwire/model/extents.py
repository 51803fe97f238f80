"""Snapshots of sparse memory files: only the pages that hold something other than zeros.

A file may be as large as a BAR of 64 GiB, of which a guest has written a few pages. So a snapshot has records: the
number of a range, an offset in the file, a length, and as many bytes. Records are in order. Each one is as long as
possible, so two equal states give equal snapshots.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bellwire.errors import StateError
from bellwire.linux import KEEP_SIZE, PUNCH_HOLE, fallocate

PAGE = 4096
RECORD = struct.Struct("<IQQ")  # the range's number, the offset in its file, the count of bytes that follow
_ZEROS = bytes(PAGE)


class Extent(NamedTuple):
    """The bytes ``[start, stop)`` of the memory file ``fd``, all of which is mapped as ``view``."""

    fd: int
    view: memoryview
    start: int
    stop: int


def pack(extents: Sequence[Extent]) -> bytes:
    """The records of all ``extents``."""
    parts: list[bytes | memoryview] = []
    for number, extent in enumerate(extents):
        for start, stop in _written(extent):
            parts += (RECORD.pack(number, start, stop - start), extent.view[start:stop])
    return b"".join(parts)


def unpack(extents: Sequence[Extent], records: bytes | memoryview) -> None:
    """Restore what :func:`pack` gave for files like these. A StateError, and nothing has changed, for anything else."""
    found = list(_parsed(extents, records))
    for extent in extents:
        if extent.start < extent.stop:
            fallocate(extent.fd, PUNCH_HOLE | KEEP_SIZE, extent.start, extent.stop - extent.start)
    for number, start, data in found:
        extents[number].view[start : start + len(data)] = data


def copy(source: Extent, target: Extent) -> None:
    """Make ``target`` equal to ``source``, which is as long. Zeros take no memory."""
    fallocate(target.fd, PUNCH_HOLE | KEEP_SIZE, target.start, target.stop - target.start)
    copy_to(source, target.view[target.start : target.stop])


def copy_to(source: Extent, view: memoryview) -> None:
    """Copy what is written in ``source`` to ``view``, which holds zeros, and may end where only zeros follow."""
    for start, stop in _written(source):
        data = source.view[start : min(stop, source.start + len(view))]
        view[start - source.start : start - source.start + len(data)] = data


def last_written(source: Extent) -> int:
    """The number of bytes of ``source`` up to the last one that is not zero."""
    end = 0
    for start, stop in _written(source):
        end = start - source.start + len(source.view[start:stop].tobytes().rstrip(b"\0"))
    return end


def _written(extent: Extent) -> Iterator[tuple[int, int]]:
    """The stretches of whole pages, cut to the extent, that hold something other than zeros."""
    begun = end = extent.start
    for page in _pages(extent):
        first, last = max(page, extent.start), min(page + PAGE, extent.stop)
        data = extent.view[first:last].tobytes()
        if data == _ZEROS[: last - first]:
            continue
        if first != end:
            if begun < end:
                yield begun, end
            begun = first
        end = last
    if begun < end:
        yield begun, end


def _pages(extent: Extent) -> Iterator[int]:
    """The offsets of the pages that the file has memory for (lseek(2), SEEK_DATA)."""
    at = extent.start
    while at < extent.stop:
        try:
            at = os.lseek(extent.fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data after this
                return
            raise
        end = os.lseek(extent.fd, at, os.SEEK_HOLE)
        yield from range(at // PAGE * PAGE, min(end, extent.stop), PAGE)
        at = end


def _parsed(extents: Sequence[Extent], records: bytes | memoryview) -> Iterator[tuple[int, int, memoryview]]:
    """The records, each within its extent and behind the one before."""
    content, at = memoryview(records), 0
    before = (-1, 0)
    while at < len(content):
        if len(content) - at < RECORD.size:
            raise StateError(f"snapshot: {len(content) - at} bytes are left at {at}, and a record begins with more")
        number, start, count = RECORD.unpack_from(content, at)
        at += RECORD.size
        if number >= len(extents) or count > len(content) - at:
            raise StateError(f"snapshot: record of {count} bytes for range {number}, {len(content) - at} are left")
        extent = extents[number]
        if not extent.start <= start <= start + count <= extent.stop:
            raise StateError(f"snapshot: record of {count} bytes at {start:#x} lies outside its range")
        if (number, start) < before:
            raise StateError(f"snapshot: the record at {start:#x} of range {number} is out of order")
        yield number, start, content[at : at + count]
        before = (number, start + count)
        at += count
