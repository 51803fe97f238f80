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
    """What a request asks for."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13


class Result(IntEnum):
    """How it ended: the last byte that the device writes."""

    OK = 0
    IO_ERROR = 1
    UNSUPPORTED = 2


class Failure(Exception):
    """A request that cannot be done."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.name)
        self.result = result


class Span(NamedTuple):
    """Bytes of the disk; ``flags`` as the driver gave them."""

    offset: int
    length: int
    flags: int


class Request:
    """One buffer: a header and perhaps data to read, perhaps room to fill, and a byte for the result."""

    __slots__ = ("chain", "data", "data_size", "room", "room_size", "sector", "type")

    def __init__(self, chain: Chain) -> None:
        if chain.size < HEADER.size or not chain.room:
            raise GuestError(f"{chain.queue}: a request of {chain.size} bytes with {chain.room} for the answer")
        self.chain = chain
        self.type: int
        self.sector: int
        self.type, _, self.sector = HEADER.unpack(b"".join(part(chain.readable, 0, HEADER.size)))
        self.data = part(chain.readable, HEADER.size, chain.size)
        self.data_size = chain.size - HEADER.size
        self.room = part(chain.writable, 0, chain.room - 1)
        self.room_size = chain.room - 1

    def place(self, disk_size: int, length: int) -> int:
        """Where on the disk ``length`` bytes lie; a Failure where they do not."""
        offset = self.sector * SECTOR
        if length % SECTOR or offset + length > disk_size:
            raise Failure(Result.IO_ERROR)
        return offset

    def put(self, data: bytes) -> None:
        """Fill the room."""
        self.chain.write(data[: self.room_size])

    def end(self, result: Result) -> None:
        """Give the buffer back. The used length is what has been written from the buffer's start (§2.7.8.2).

        The result is written last, and counts where nothing before it was left out.
        """
        filled = 0
        if result is Result.OK:
            filled = self.room_size if self.type == Type.IN else self.chain.written
        self.chain.writable[-1][-1] = result
        self.chain.done(filled + 1 if filled == self.room_size else filled)


def spans(request: Request, disk_size: int, most_sectors: int) -> list[Span]:
    """The segments of a request to discard or zero, checked (§5.2.6.2)."""
    known = UNMAP if request.type == Type.WRITE_ZEROES else 0
    if not 0 < request.data_size <= MOST_SEGMENTS * SEGMENT.size or request.data_size % SEGMENT.size:
        raise Failure(Result.IO_ERROR)
    found = []
    for sector, count, flags in SEGMENT.iter_unpack(b"".join(request.data)):
        if flags & ~known:
            raise Failure(Result.UNSUPPORTED)
        if count > most_sectors or (sector + count) * SECTOR > disk_size:
            raise Failure(Result.IO_ERROR)
        found.append(Span(sector * SECTOR, count * SECTOR, flags))
    return found


def discard(disk: Disk, where: Sequence[Span]) -> None:
    """What was there is no longer needed."""
    for offset, length, _ in where:
        if length:
            disk.discard(offset, length)


def write_zeroes(disk: Disk, where: Sequence[Span], durable: bool) -> None:
    """Make it read as zeroes; UNMAP: the space may go."""
    for offset, length, flags in where:
        if length:
            disk.zero(offset, length, release=bool(flags & UNMAP))
    if durable:
        disk.flush()
