"""Guest memory for the tests: requests to map it, a table of it, and memory that answers messages."""

from __future__ import annotations

import os
import struct

from vfio_user import DmaFault, DmaFlags, DmaMap, DmaTable, DmaUnmap

PAGE = 4096
READ, WRITE = int(DmaFlags.READ), int(DmaFlags.WRITE)
BOTH = READ | WRITE
TOP = 1 << 64


def mapping(address: int, size: int, *, flags: int = BOTH, offset: int = 0, argsz: int = 32) -> bytes:
    return struct.pack("<IIQQQ", argsz, flags, offset, address, size)


def unmapping(address: int, size: int, *, flags: int = 0, argsz: int = 24) -> bytes:
    return struct.pack("<IIQQ", argsz, flags, address, size)


def add(table: DmaTable, address: int, size: int, fd: int | None = None, flags: int = BOTH, offset: int = 0) -> None:
    table.map(DmaMap(DmaFlags(flags), offset, address, size), None if fd is None else os.dup(fd))


def remove(table: DmaTable, address: int, size: int) -> None:
    table.unmap(table.inside(DmaUnmap(address, size)))


def view(table: DmaTable, address: int, size: int, *, write: bool = False) -> memoryview:
    """The one segment's memory."""
    (segment,) = table.segments(address, size, write)
    assert segment.view is not None
    return segment.view


def maps() -> str:
    with open("/proc/self/maps") as file:
        return file.read()


GUEST = 0x100000  # where the tests' guest memory starts


class GuestMemory:
    """A `vfio_user.Memory`."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(os.urandom(size))

    def read(self, address: int, count: int) -> bytes:
        self._check(address, count)
        return bytes(self.data[address - GUEST : address - GUEST + count])

    def write(self, address: int, data: bytes) -> None:
        self._check(address, len(data))
        self.data[address - GUEST : address - GUEST + len(data)] = data

    def _check(self, address: int, count: int) -> None:
        if not GUEST <= address <= address + count <= GUEST + len(self.data):
            raise DmaFault(address, count, "no such memory")
