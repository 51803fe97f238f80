"""The descriptors that have come with a stream, until the message that they belong to is given out."""

from __future__ import annotations

import socket
import struct

from vfio_user.errors import FramingError
from vfio_user.message import close_fds

KERNEL_MAX_FDS = 253
MOST_FDS_HELD = 2 * KERNEL_MAX_FDS  # of one incomplete message; its last receive may bring fds of the next message, too
FD = struct.Struct("i")


class ReceivedFds:
    """Owns the descriptors. A position is one in the stream of bytes."""

    def __init__(self) -> None:
        self.held: list[tuple[int, list[int]]] = []
        """Descriptors, each with the position of the last byte that was received with them."""

    def keep(self, ancillary: list[tuple[int, int, bytes]], position: int) -> None:
        """Keep what has come with the bytes up to ``position``. Raises FramingError if there are too many."""
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                usable = len(data) - len(data) % FD.size
                self.held.append((position, [fd for (fd,) in FD.iter_unpack(data[:usable])]))
        if len(self.held) > 1 and sum(len(fds) for _, fds in self.held) > MOST_FDS_HELD:
            raise FramingError(f"more than {MOST_FDS_HELD} file descriptors came with pieces of one message")

    def take(self, position: int) -> list[int]:
        """The descriptors of the message that ends at ``position``, which the caller owns from now on."""
        taken: list[int] = []
        while self.held and self.held[0][0] <= position:
            taken += self.held.pop(0)[1]
        return taken

    def close(self) -> None:
        """Close those that nobody has taken."""
        for _, fds in self.held:
            close_fds(fds)
        self.held.clear()
