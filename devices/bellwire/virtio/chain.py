"""Buffers that the driver has made available: descriptor chains, as views of guest memory."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Self

from bellwire.errors import GuestError
from bellwire.model.dma import Dma
from vfio_user import SharedMap

if TYPE_CHECKING:
    from bellwire.virtio.inflight import Out
    from bellwire.virtio.virtqueue import Virtqueue

DESCRIPTOR = struct.Struct("<QIHH")
"""Address and length; then flags and next in a split ring (§2.7.5), or id and flags in a packed one (§2.8.1)."""
NEXT, WRITE, INDIRECT = 0x1, 0x2, 0x4
Descriptor = tuple[int, int, int, int]
"""A piece of a buffer: its address, its length in bytes, flags, of which only WRITE counts, and what does not count."""

Row = tuple[int, int, int, int, int, bool, int]
"""A buffer of three descriptors that lie side by side, as a disk's driver makes most of them: something to read, data,
and something to write. Its id and the ring slots that it takes; the address of the first; address and length of the
data, and whether the device may write it; the address of the last.
"""
ROW = struct.Struct("<6Q")
"""Three descriptors: of each the address, and the other fields as one number."""
LENGTH = 0xFFFF_FFFF
"""The bits of that number that are the length."""

MOST_DESCRIPTORS = 1024
"""The limit of one indirect table: more than disk drivers use."""
MOST_BYTES = 64 << 20
NOWHERE = SharedMap(1, 0, memoryview(b""))


class Whole(NamedTuple):
    """Buffers of one descriptor each, in one map of guest memory, all to read or all to write."""

    ids: list[int]
    """There may be more of them than of what follows."""
    memory: memoryview
    """The map."""
    starts: list[int]
    """Where each begins in ``memory``."""
    sizes: list[int]
    """The number of bytes of each."""


class Chain:
    """One buffer of the driver: ``readable`` views for the device to read, then ``writable`` ones (§2.6.4.2).

    Device code may use the views until the hook ends. A job on another thread may use them until :meth:`done`.
    """

    __slots__ = ("again", "id", "queue", "readable", "room", "size", "span", "writable", "written")

    def __init__(
        self,
        queue: Virtqueue,
        number: int,
        span: int,
        readable: list[memoryview],
        writable: list[memoryview],
        size: int,
        room: int,
    ) -> None:
        self.queue = queue
        self.id = number
        self.span = span
        """The number of ring slots that it occupies."""
        self.readable = readable
        self.writable = writable
        self.size = size
        """The number of bytes that the device may read."""
        self.room = room
        """The number of bytes that the device may write."""
        self.written = 0
        """The number of bytes written so far, from the start of ``writable``."""
        self.again: Out
        """What the journal has of it. Set only if it was out when the state was restored."""

    @classmethod
    def of_row(cls, queue: Virtqueue, row: Row, written: int) -> Self:
        """A buffer that was done as a row, with ``written`` bytes in it. It has no views: it can only be returned."""
        chain = cls(queue, row[0], row[1], [], [], 0, 0)
        chain.written = written
        return chain

    def read(self) -> bytes:
        """A copy of all bytes that the device may read."""
        return b"".join(self.readable)

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data`` to the bytes written so far. A GuestError if the driver has left no room for it."""
        source = memoryview(data)
        start, stop = self.written, self.written + len(source)
        if stop > self.room:
            raise GuestError(f"{self.queue}: a buffer has {self.room} bytes to write, {stop} needed")
        self.written = stop
        for view in part(self.writable, start, stop):
            view[:], source = source[: len(view)], source[len(view) :]

    def done(self, written: int | None = None) -> None:
        """Return the chain to the driver, with ``written`` bytes in it. A flush of the queue publishes it."""
        if written is not None:
            self.written = written
        self.queue.finish((self,))


class Window:
    """The guest memory in which descriptors lie: it makes chains of them.

    Nearly all buffers lie in one map of the client. So the maps that the last ones were in are kept, one to read and
    one to write, and a view is a slice of theirs. They are valid as long as ``dma.changes`` stays the same.
    """

    __slots__ = ("_dma", "_queue", "read", "write")

    def __init__(self, queue: Virtqueue, dma: Dma) -> None:
        self._queue = queue
        self._dma = dma
        self.read = self.write = NOWHERE

    def chain(self, number: int, span: int, parts: Iterable[Descriptor]) -> Chain:
        """The chain of these descriptors. A GuestError if one lies outside guest memory, or has a wrong place."""
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        size = room = 0
        (read_start, read_end, read), (write_start, write_end, write) = self.read, self.write
        for address, length, flags, _ in parts:
            end = address + length
            if flags & WRITE:
                room += length
                if write_start <= address and end <= write_end and length:
                    writable.append(write[address - write_start : end - write_start])
                elif length:
                    writable += self._find(address, length, write=True)
                    write_start, write_end, write = self.write
            elif room:
                raise GuestError("a descriptor to read comes after one to write")
            else:
                size += length
                if read_start <= address and end <= read_end and length:
                    readable.append(read[address - read_start : end - read_start])
                elif length:
                    readable += self._find(address, length, write=False)
                    read_start, read_end, read = self.read
        if size + room > MOST_BYTES:
            raise GuestError(f"a buffer of more than {MOST_BYTES} bytes")
        return Chain(self._queue, number, span, readable, writable, size, room)

    def table(self, address: int, length: int) -> memoryview | bytes:
        """An indirect table of ``length`` bytes (§2.7.5.3): a view, or a copy if it lies in several pieces of memory.

        A GuestError for a bad length, or if it lies outside guest memory.
        """
        if length % DESCRIPTOR.size or not DESCRIPTOR.size <= length <= DESCRIPTOR.size * MOST_DESCRIPTORS:
            raise GuestError(f"an indirect table of {length} bytes: 1 to {MOST_DESCRIPTORS} descriptors of 16 expected")
        start, end, view = self.read
        if start <= address and address + length <= end:
            return view[address - start : address - start + length]
        views = self._find(address, length, write=False)
        return views[0] if len(views) == 1 else b"".join(views)

    def reach(self, address: int, length: int, *, write: bool) -> SharedMap:
        """The map that holds all of this memory. It is kept; NOWHERE, and none is kept, if no map does."""
        try:
            self._find(address, length, write=write)
        except GuestError:
            return NOWHERE
        found = self.write if write else self.read
        return found if found.start <= address and address + length <= found.end else NOWHERE

    def _find(self, address: int, length: int, *, write: bool) -> list[memoryview]:
        """Views of memory outside the maps that are kept. If one map holds all of it, that map is kept."""
        found = self._dma.shared_map(address, write=write)
        if found is None or address + length > found.end:
            views = self._dma.map(address, length, write=write)
            self._dma.touched(-length)  # map() counts them, and so does the queue when it publishes the buffer
            return views
        if write:
            self.write = found
        else:
            self.read = found
        return [found.view[address - found.start : address - found.start + length]]


def part(views: list[memoryview], start: int, stop: int) -> list[memoryview]:
    """The bytes from ``start`` to ``stop`` of a buffer in pieces. Drivers may divide buffers freely (§2.6.4.1)."""
    found = []
    for view in views:
        if start < len(view) and stop > 0:
            found.append(view[max(0, start) : stop])
        start -= len(view)
        stop -= len(view)
    return found
