"""The data of a migration: a snapshot in one or two parts, with a checksum of everything.

It begins with a header, and frames follow:

=====  ==========================================================================================================
frame  payload
=====  ==========================================================================================================
PAGES  records of a snapshot (:mod:`.extents`), taken while the device ran
STATE  a snapshot, taken when the device stood still
END    nothing: the data is whole
=====  ==========================================================================================================

A frame lacks the records that frames before it have and that are still right. A record of zeros takes the place of one
that has gone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from enum import IntEnum
from hashlib import blake2b

from bellwire.errors import StateError
from bellwire.model.extents import PAGE, RECORD
from bellwire.model.source import Header

MAGIC = 0x4D57_4C42  # "BLWM" when read as text
FORMAT = 1
"""Raised when an older Bellwire could not read the data. Every format since 1 is read."""
HEAD = struct.Struct("<II")
FRAME = struct.Struct("<IQ")  # kind, bytes of payload; the CRC-32 of both and of the payload follows
CHECKSUM = struct.Struct("<I")
_Pages = dict[tuple[int, int], bytes | memoryview]


class Kind(IntEnum):
    """The kind of a frame."""

    PAGES = 1
    STATE = 2
    END = 3


class Parcel:
    """Packs one device's snapshots, each with only what has changed since the one before."""

    def __init__(self) -> None:
        self._sent: dict[tuple[int, int], bytes] | None = None

    def pack(self, snapshot: bytes, *, last: bool) -> bytes:
        """The data for ``snapshot``. The one of the ``last`` ends it, and the next begins anew."""
        front = HEAD.pack(MAGIC, FORMAT) if self._sent is None else b""
        if last and self._sent is None:
            return front + _frame(Kind.STATE, snapshot) + _frame(Kind.END, b"")
        before = self._sent or {}
        head, records = split(snapshot)
        now = dict(pages(records))
        digests = {place: _digest(data) for place, data in now.items()}
        changed: _Pages = {place: data for place, data in now.items() if before.get(place) != digests[place]}
        gone: _Pages = {place: bytes(1) for place in before if place not in now}
        payload = _joined(changed | gone)
        if not last:
            self._sent = digests
            return front + _frame(Kind.PAGES, payload)
        self._sent = None
        return front + _frame(Kind.STATE, head + payload) + _frame(Kind.END, b"")

    def forget(self) -> None:
        """Begin anew."""
        self._sent = None


def unpack(data: bytes) -> bytes:
    """The snapshot in ``data``. A StateError says why the data is none, or not whole."""
    found: _Pages = {}
    head: bytes | None = None
    frames = _frames(memoryview(data))
    for kind, payload in frames:
        if kind is Kind.PAGES and head is None:
            found |= dict(pages(payload))
        elif kind is Kind.STATE and head is None:
            head, records = split(bytes(payload))
            found |= dict(pages(records))
        elif kind is Kind.END and head is not None:
            for _ in frames:
                raise StateError("migration data: a frame behind the last one")
            return head + _joined(_without_zeros(found))
        else:
            raise StateError(f"migration data: a frame of {kind.name} that does not belong there")
    raise StateError(f"migration data of {len(data)} bytes, cut short: it has no end")


def split(snapshot: bytes) -> tuple[bytes, memoryview]:
    """What is before the records of a snapshot, and the records."""
    header = Header.parse(memoryview(snapshot))
    header.refuse_torn("the state")
    _, records = header.split(snapshot)
    return snapshot[: len(snapshot) - len(records)], records


def pages(records: memoryview) -> Iterator[tuple[tuple[int, int], memoryview]]:
    """The records in pieces of a page: number and offset, and the bytes. A StateError if they cannot be."""
    at = 0
    while at < len(records):
        if len(records) - at < RECORD.size:
            raise StateError(f"migration data: a record of {len(records) - at} bytes")
        number, start, count = RECORD.unpack_from(records, at)
        at += RECORD.size
        if count > len(records) - at:
            raise StateError(f"migration data: a record of {count} bytes, and {len(records) - at} are left")
        end = start + count
        while start < end:
            size = min(PAGE - start % PAGE, end - start)
            yield (number, start), records[at : at + size]
            start, at = start + size, at + size


def _joined(found: _Pages) -> bytes:
    parts: list[bytes | memoryview] = []
    for (number, start), data in sorted(found.items(), key=lambda item: item[0]):
        parts += (RECORD.pack(number, start, len(data)), data)
    return b"".join(parts)


def _without_zeros(found: _Pages) -> _Pages:
    return {place: data for place, data in found.items() if any(data)}


def _digest(data: bytes | memoryview) -> bytes:
    return blake2b(data, digest_size=16).digest()


def _frame(kind: Kind, payload: bytes) -> bytes:
    front = FRAME.pack(kind, len(payload))
    return front + CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(front))) + payload


def _frames(data: memoryview) -> Iterator[tuple[Kind, memoryview]]:
    """The frames. A StateError if they are not those of a migration, cut short, or damaged."""
    if len(data) < HEAD.size:
        raise StateError(f"migration data of {len(data)} bytes, cut short in its header")
    magic, number = HEAD.unpack_from(data)
    if magic != MAGIC:
        raise StateError("this is not the migration data of a Bellwire device")
    if number != FORMAT:
        raise StateError(f"the migration data has format {number}, and this Bellwire reads format {FORMAT}")
    at = HEAD.size
    while at < len(data):
        front = data[at : at + FRAME.size]
        at += FRAME.size + CHECKSUM.size
        if at > len(data):
            raise StateError("migration data: cut short in the front of a frame")
        kind, size = FRAME.unpack(front)
        (checksum,) = CHECKSUM.unpack_from(data, at - CHECKSUM.size)
        payload = data[at : at + size]
        if len(payload) < size:
            raise StateError(f"migration data: cut short in a frame of {size} bytes")
        if zlib.crc32(payload, zlib.crc32(front)) != checksum:
            raise StateError("the migration data is damaged: a frame has another checksum than it says")
        if kind not in list(Kind):
            raise StateError(f"migration data: a frame of kind {kind}, expected one of {[*map(int, Kind)]}")
        yield Kind(kind), payload
        at += size
