"""The guest memory of a command: views if the client shares it, else copies by messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bellwire.bundled.nvme.command import Byte, Command
from bellwire.bundled.nvme.prp import Extent, extents
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.errors import GuestError, Unshared

if TYPE_CHECKING:
    from bellwire.model.dma import Dma

MDTS = 8
"""Maximum data transfer size, as a power of two of pages."""
LARGEST = 4096 << MDTS
SCATTERED = 3 << 6 | 3
"""The bits of a command's flags for SGLs (§4.4) and fused operations (§6.2). Neither is supported."""


class GuestPages:
    """The data pointers of commands. A wrong one raises a CommandError."""

    def __init__(self, dma: Dma) -> None:
        self._dma = dma

    def extents(self, command: Command, length: int) -> list[Extent]:
        """The extents of guest memory that hold the command's ``length`` bytes."""
        check_flags(command)
        if length > LARGEST:
            raise CommandError(Status.INVALID_FIELD, Byte.CDW12)
        try:
            return extents(command.prp1, command.prp2, length, self._dma.read)
        except GuestError as error:
            raise CommandError(Status.DATA_TRANSFER_ERROR, Byte.PRP2) from error

    def views(self, places: list[Extent], *, write: bool) -> list[memoryview] | None:
        """Views of these extents; None if the client does not share them."""
        try:
            if len(places) == 1:
                address, size = places[0]
                return self._dma.map(address, size, write=write)
            return [view for address, size in places for view in self._dma.map(address, size, write=write)]
        except Unshared:
            return None
        except GuestError as error:
            raise CommandError(Status.DATA_TRANSFER_ERROR, Byte.PRP1) from error

    def gather(self, places: list[Extent]) -> bytes:
        """A copy of the bytes in these extents."""
        try:
            return b"".join([self._dma.read(address, size) for address, size in places])
        except GuestError as error:
            raise CommandError(Status.DATA_TRANSFER_ERROR, Byte.PRP1) from error

    def scatter(self, places: list[Extent], data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` to these extents."""
        source = memoryview(data)
        try:
            for address, size in places:
                self._dma.write(address, source[:size])
                source = source[size:]
        except GuestError as error:
            raise CommandError(Status.DATA_TRANSFER_ERROR, Byte.PRP1) from error


def check_flags(command: Command) -> None:
    """Refuse SGLs and fused operations."""
    if command.flags & SCATTERED:
        raise CommandError(Status.INVALID_FIELD, Byte.FLAGS)
