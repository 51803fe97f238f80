"""A buffer that the driver has made available: a descriptor chain, as views of guest memory."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from bellwire.errors import GuestError
from bellwire.model.dma import Dma

if TYPE_CHECKING:
    from bellwire.virtio.virtqueue import Virtqueue

DESCRIPTOR = struct.Struct("<QIHH")
"""Address and length; then flags and next in a split ring (§2.7.5), or id and flags in a packed one (§2.8.1)."""
NEXT, WRITE, INDIRECT = 0x1, 0x2, 0x4

MOST_DESCRIPTORS = 1024
"""The limit of one indirect table: more than disk drivers use."""
MOST_BYTES = 64 << 20


class Chain:
    """One buffer of the driver: ``readable`` views for the device to read, then ``writable`` ones (§2.6.4.2).

    Device code may use the views until the hook ends. A job on another thread may use them until :meth:`done`.
    """

    __slots__ = ("id", "queue", "readable", "room", "size", "span", "writable", "written")

    def __init__(self, queue: Virtqueue) -> None:
        self.queue = queue
        self.id = 0
        self.span: int
        """The number of slots that it occupies in a packed ring, which sets it."""
        self.readable: list[memoryview] = []
        self.writable: list[memoryview] = []
        self.size = 0
        """The number of bytes that the device may read."""
        self.room = 0
        """The number of bytes that the device may write."""
        self.written = 0
        """The number of bytes written so far, from the start of ``writable``."""

    def read(self) -> bytes:
        """A copy of all bytes that the device may read."""
        return b"".join(self.readable)

    def write(self, data: bytes | memoryview) -> None:
        """Append ``data`` to the bytes written so far. A GuestError if the driver has left no room for it."""
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
        """Return the chain to the driver, with ``written`` bytes in it. A flush of the queue publishes it."""
        if written is not None:
            self.written = written
        self.queue.finish(self)

    def add(self, dma: Dma, address: int, length: int, flags: int) -> None:
        """Add one descriptor. A GuestError if it lies outside guest memory, or has a wrong place in the chain."""
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
    """The bytes from ``start`` to ``stop`` of a buffer in pieces. Drivers may divide buffers freely (§2.6.4.1)."""
    found = []
    for view in views:
        if start < len(view) and stop > 0:
            found.append(view[max(0, start) : stop])
        start -= len(view)
        stop -= len(view)
    return found


def indirect_table(dma: Dma, address: int, length: int) -> memoryview | bytes:
    """An indirect table of descriptors: a view, or a copy if it lies in several pieces of memory."""
    views = dma.map(address, length)
    return views[0] if len(views) == 1 else b"".join(views)


def table_size(length: int) -> int:
    """The number of descriptors in an indirect table of ``length`` bytes (§2.7.5.3). A GuestError for a bad length."""
    count, rest = divmod(length, DESCRIPTOR.size)
    if rest or not 1 <= count <= MOST_DESCRIPTORS:
        raise GuestError(f"an indirect table of {length} bytes: 1 to {MOST_DESCRIPTORS} descriptors of 16 expected")
    return count
