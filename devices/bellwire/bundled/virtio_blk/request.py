"""Requests of a virtio disk (§5.2.6)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from bellwire.errors import GuestError
from bellwire.storage import Disk
from bellwire.virtio.chain import Chain, part

SECTOR = 512
HEADER = struct.Struct("<IIQ")  # type, reserved, sector
HEADER_SIZE = HEADER.size
unpack_header = HEADER.unpack
SEGMENT = struct.Struct("<QII")  # sector, sectors, flags
MOST_SEGMENTS = 256
UNMAP = 1 << 0


class Blk(IntEnum):
    """Feature bits (§5.2.3)."""

    SIZE_MAX = 1
    SEG_MAX = 2
    RO = 5
    BLK_SIZE = 6
    FLUSH = 9
    CONFIG_WCE = 11
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14


class Type(IntEnum):
    """Types of requests."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Result(IntEnum):
    """The status of a request: the last byte that the device writes."""

    OK = 0
    IO_ERROR = 1
    UNSUPPORTED = 2


IN, OK = int(Type.IN), Result.OK  # plain names: looking up a member of an enum takes longer than comparing it


class Failure(Exception):
    """A request cannot be done. It has the status for the driver."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.name)
        self.result = result


class Span(NamedTuple):
    """A range of bytes of the disk, with the ``flags`` of the driver."""

    offset: int
    length: int
    flags: int


class Request:
    """One request in one buffer: a header, perhaps data to write, perhaps room for data, and a byte for the status.

    A GuestError if the buffer has no place for header or status.
    """

    __slots__ = ("begun", "chain", "data", "room", "sector", "type")

    def __init__(self, chain: Chain) -> None:
        readable, writable = chain.readable, chain.writable
        if chain.size < HEADER_SIZE or not writable:
            raise GuestError(f"{chain.queue}: a request of {chain.size} bytes with {chain.room} for the answer")
        self.chain = chain
        self.begun: int
        """The time at which a thread's work for it began, in ns."""
        self.type: int
        self.sector: int
        if len(readable[0]) == HEADER_SIZE:  # drivers give the header and the status a descriptor each
            self.data = readable[1:]
            self.type, _, self.sector = unpack_header(readable[0])
        else:
            self.data = part(readable, HEADER_SIZE, chain.size)
            self.type, _, self.sector = unpack_header(b"".join(part(readable, 0, HEADER_SIZE)))
        self.room = writable[:-1] if len(writable[-1]) == 1 else part(writable, 0, chain.room - 1)

    @property
    def data_size(self) -> int:
        """The number of bytes of data that the driver has written."""
        return self.chain.size - HEADER_SIZE

    @property
    def room_size(self) -> int:
        """The number of bytes that the driver has left for data."""
        return self.chain.room - 1

    def put(self, data: bytes) -> None:
        """Write ``data`` to the room for data."""
        self.chain.write(data[: self.room_size])

    def end(self, result: Result) -> Chain:
        """Write the status. Returns the buffer, for the driver.

        The used length counts the bytes written from the start of the buffer (§2.7.8.2). The status is the last byte.
        It counts only if all bytes before it have been written.
        """
        chain = self.chain
        if result is OK and self.type == IN:
            chain.written = chain.room - 1
        chain.written += chain.written == chain.room - 1
        chain.writable[-1][-1] = result
        return chain


def spans(request: Request, disk_size: int, most_sectors: int) -> list[Span]:
    """The segments of a request to discard or zero. A Failure if one is not valid (§5.2.6.2)."""
    known = UNMAP if request.type == Type.WRITE_ZEROES else 0
    count, rest = divmod(request.data_size, SEGMENT.size)
    if rest or not 1 <= count <= MOST_SEGMENTS:
        raise Failure(Result.IO_ERROR)
    found = []
    for sector, sectors, flags in SEGMENT.iter_unpack(b"".join(request.data)):
        if flags & ~known:
            raise Failure(Result.UNSUPPORTED)
        if sectors > most_sectors or (sector + sectors) * SECTOR > disk_size:
            raise Failure(Result.IO_ERROR)
        found.append(Span(sector * SECTOR, sectors * SECTOR, flags))
    return found


def discard(disk: Disk, where: Sequence[Span]) -> None:
    """Discard these ranges: the driver no longer needs their content."""
    for offset, length, _ in where:
        if length:
            disk.discard(offset, length)


def write_zeroes(disk: Disk, where: Sequence[Span], durable: bool) -> None:
    """Make these ranges read as zeros. With UNMAP their space may be freed."""
    for offset, length, flags in where:
        if length:
            disk.zero(offset, length, release=bool(flags & UNMAP))
    if durable:
        disk.flush()
