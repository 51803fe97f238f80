"""The guest memory that a back end is told of: pieces of files, as few as there can be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bellwire.vhost.messages import MemoryRegion
from vfio_user import SharedFile


class Piece(NamedTuple):
    """``size`` bytes of guest memory at ``address``: at ``offset`` of the file ``fd``, here mapped at ``mapped_at``."""

    address: int
    size: int
    fd: int
    offset: int
    mapped_at: int

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.size

    @property
    def region(self) -> MemoryRegion:
        """The piece in a message. Rings are named by guest addresses, so these are the user addresses too."""
        return MemoryRegion(self.address, self.size, self.address, self.offset)

    @property
    def identity(self) -> tuple[int, ...]:
        """What another process knows the same piece by."""
        place = self.address, self.size, self.offset
        if self.fd < 0:
            return *place, 0, 0
        file = os.fstat(self.fd)
        return *place, file.st_dev, file.st_ino


def told(table: Iterable[Piece], identities: Iterable[Sequence[int]]) -> list[Piece]:
    """The pieces that another process has told a back end of. One that is not in ``table`` has no file."""
    here = {piece.identity: piece for piece in table}
    gone = (Piece(address, size, -1, offset, 0) for address, size, offset, _, _ in identities)
    return [here.get(tuple(identity), other) for identity, other in zip(identities, gone, strict=True)]


def pieces(files: Iterable[SharedFile], *, mapped: bool = False) -> list[Piece]:
    """The pieces of these maps, in order of address. Neighbours in memory and in the same file become one.

    With ``mapped`` they must be neighbours in this process too.
    """
    found: list[Piece] = []
    for each in files:
        piece = Piece(*each)
        last = found[-1] if found else None
        if (
            last is not None
            and last.end == piece.address
            and last.fd == piece.fd
            and last.offset + last.size == piece.offset
            and (not mapped or last.mapped_at + last.size == piece.mapped_at)
        ):
            found[-1] = last._replace(size=last.size + piece.size)
        else:
            found.append(piece)
    return found


def inside(table: Iterable[Piece], address: int, size: int) -> Piece | None:
    """The piece that holds ``size`` bytes at ``address``, or None."""
    return next((each for each in table if each.address <= address and address + size <= each.end), None)


def overlap(some: Iterable[Piece], others: Iterable[Piece]) -> bool:
    """Whether any address lies in one of both."""
    others = list(others)
    return any(one.address < other.end and other.address < one.end for one in some for other in others)
