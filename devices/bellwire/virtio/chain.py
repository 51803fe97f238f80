"""A buffer that a driver has made available: a chain of descriptors, as views of guest memory."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from bellwire.errors import GuestError
from bellwire.model.dma import Dma

if TYPE_CHECKING:
    from bellwire.virtio.virtqueue import Virtqueue

DESCRIPTOR = struct.Struct("<QIHH")
"""Address and length; then flags and next where rings are split (§2.7.5), id and flags where packed (§2.8.1)."""
NEXT, WRITE, INDIRECT = 0x1, 0x2, 0x4

MOST_DESCRIPTORS = 1024
"""In one indirect table: what drivers of disks ask for, with room to spare."""
MOST_BYTES = 64 << 20


class Chain:
    """What the device may read comes first, what it may write second (§2.6.4.2): ``readable``, ``writable``.

    The views are good until the hook ends, or until :meth:`done`; work on another thread may keep them until then.
    """

    __slots__ = ("id", "queue", "readable", "room", "size", "span", "writable", "written")

    def __init__(self, queue: Virtqueue) -> None:
        self.queue = queue
        self.id = 0
        self.span = 1
        """Slots of the ring that it takes up."""
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.size = 0
        """Bytes that can be read."""
        self.room = 0
        """Bytes that can be written."""
        self.written = 0
        """Bytes that have been written, from the start of ``writable``."""

    def read(self) -> bytes:
        """All that can be read, copied."""
        return b"".join(self.readable)

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data`` to what has been written; a GuestError where the driver has left no room for it."""
        source = memoryview(data)
        if self.written + len(source) > self.room:
            raise GuestError(
                f"{self.queue}: a buffer has {self.room} bytes to write, {self.written + len(source)} needed"
            )
        start = self.written
        self.written += len(source)
        for view in self.writable:
            if start < len(view):
                some = len(view) - start
                view[start : start + len(source)] = source[:some]
                source = source[some:]
                if not source:
                    return
            start = max(0, start - len(view))

    def done(self, written: int | None = None) -> None:
        """Give it back, with ``written`` bytes in it; the driver learns of it when the queue is flushed."""
        if written is not None:
            self.written = written
        self.queue.finish(self)

    def add(self, dma: Dma, address: int, length: int, flags: int) -> None:
        """One descriptor more."""
        if flags & WRITE:
            self.room += length
            if length:
                self.writable += dma.map(address, length, write=True)
        elif self.room:
            raise GuestError("a descriptor to read comes after one to write")
        else:
            self.size += length
            if length:
                self.readable += dma.map(address, length)
        if self.size + self.room > MOST_BYTES:
            raise GuestError(f"a buffer of more than {MOST_BYTES} bytes")


def part(views: list[memoryview], start: int, stop: int) -> list[memoryview]:
    """The bytes from ``start`` to ``stop`` of a buffer in pieces; drivers may lay them out as they like (§2.6.4.1)."""
    found = []
    for view in views:
        if start < len(view) and stop > 0:
            found.append(view[max(0, start) : stop])
        start -= len(view)
        stop -= len(view)
    return found


def indirect_table(dma: Dma, address: int, length: int) -> memoryview | bytes:
    """A table of descriptors: in place, or a copy where it lies in several pieces of memory."""
    views = dma.map(address, length)
    return views[0] if len(views) == 1 else b"".join(views)


def table_size(length: int) -> int:
    """How many descriptors an indirect table of ``length`` bytes has (§2.7.5.3)."""
    count, rest = divmod(length, DESCRIPTOR.size)
    if rest or not 1 <= count <= MOST_DESCRIPTORS:
        raise GuestError(f"an indirect table of {length} bytes: 1 to {MOST_DESCRIPTORS} descriptors of 16 expected")
    return count
