"""The event ring: the last records of a trace, in a memory file that others read while the device runs.

The device's thread writes it, and never waits for a reader. A reader maps the file, or gets it after the worker has
died. The file has a header and slots of a fixed size; record number ``n`` lies in slot ``n % slots``. A slot has the
record's number, the length of its JSON, and the JSON. The number is cleared before the slot changes and written last,
so a reader sees when a slot was overwritten under its eyes. The file is sealed: no reader can write or resize it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator

import msgspec

from bellwire.errors import BellwireError
from bellwire.filters.observing.record import Record

MAGIC = b"BWEVENTS"
SLOT = 512  # bytes of a slot: the longest record fits
MOST_SLOTS = 1 << 20
_HEADER = struct.Struct("<8sIIQ")  # magic, slots, bytes of a slot, number of the latest record
_HEAD = struct.Struct("<Q")
_HEAD_AT = 16
_NUMBER = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")
_LEAD = 12
FIRST_SLOT = 64
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | 0x10  # F_SEAL_FUTURE_WRITE: only the map that is there may write


class RingError(BellwireError, ValueError):
    """A file that is no event ring."""


class EventRing:
    """The writer's side: keeps the last ``slots`` records. Numbers begin at 1."""

    def __init__(self, slots: int) -> None:
        self.fd = os.memfd_create("bellwire-events", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._slots = slots
        size = FIRST_SLOT + slots * SLOT
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)
        self._encode = msgspec.json.Encoder().encode
        self.latest = 0
        _HEADER.pack_into(self._map, 0, MAGIC, slots, SLOT, 0)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)

    def add(self, record: Record) -> None:
        """Keep a record. It takes the place of the oldest one."""
        data = self._encode(record)[: SLOT - _LEAD]
        number = self.latest + 1
        at = FIRST_SLOT + number % self._slots * SLOT
        _NUMBER.pack_into(self._map, at, 0)
        _LENGTH.pack_into(self._map, at + _NUMBER.size, len(data))
        self._map[at + _LEAD : at + _LEAD + len(data)] = data
        _NUMBER.pack_into(self._map, at, number)
        self.latest = number
        _HEAD.pack_into(self._map, _HEAD_AT, number)

    def close(self) -> None:
        """Close the file. Readers keep theirs."""
        self._map.close()
        os.close(self.fd)


class RingReader:
    """The reader's side. The file is not trusted: who has written it may be the code of a device.

    A RingError if ``fd`` is no event ring. The descriptor stays the caller's.
    """

    def __init__(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        if not FIRST_SLOT < size <= FIRST_SLOT + MOST_SLOTS * SLOT:
            raise RingError(f"an event ring of {size} bytes")
        self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        magic, self._slots, slot, _ = _HEADER.unpack_from(self._map, 0)
        if magic != MAGIC or slot != SLOT or self._slots * SLOT + FIRST_SLOT != size:
            self._map.close()
            raise RingError("this is no event ring, or one of another version")
        self._decode = msgspec.json.Decoder(Record).decode

    @property
    def latest(self) -> int:
        """The number of the latest record; 0 if there is none."""
        number: int = _HEAD.unpack_from(self._map, _HEAD_AT)[0]
        return number

    def after(self, number: int) -> Iterator[tuple[int, Record]]:
        """The records that came after the one with this number, as far as they are still there, with their numbers."""
        latest = self.latest
        for each in range(max(number, latest - self._slots) + 1, latest + 1):
            record = self._record(each)
            if record is not None:
                yield each, record

    def last(self, count: int) -> Iterator[tuple[int, Record]]:
        """The last ``count`` records."""
        return self.after(max(0, self.latest - count))

    def close(self) -> None:
        """Unmap the file."""
        self._map.close()

    def _record(self, number: int) -> Record | None:
        at = FIRST_SLOT + number % self._slots * SLOT
        data = self._map[at : at + SLOT]
        if _NUMBER.unpack_from(data)[0] != number or _NUMBER.unpack_from(self._map, at)[0] != number:
            return None
        length = min(_LENGTH.unpack_from(data, _NUMBER.size)[0], SLOT - _LEAD)
        try:
            return self._decode(data[_LEAD : _LEAD + length])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
