"""A channel for event loops: a send never waits. What the socket does not take is queued."""

from __future__ import annotations

import array
import errno
import socket
from collections import deque
from collections.abc import Callable, Sequence

from vfio_user.channel import SEND, Channel
from vfio_user.errors import Disconnected, VfioUserError
from vfio_user.message import close_fds, duplicates, unsendable

MOST_UNSENT = 16 << 20
"""Bytes from which on a sender should wait."""


class QueuedChannel(Channel):
    """As :class:`Channel`. ``blocked`` is called when bytes are queued: call :meth:`flush` when the socket is writable.

    Queued descriptors are duplicates, so the caller may close its own at any time.
    """

    def __init__(self, sock: socket.socket, max_transfer: int, blocked: Callable[[QueuedChannel], None]) -> None:
        super().__init__(sock, max_transfer)
        self._blocked = blocked
        self._queue: deque[tuple[memoryview, list[int]]] = deque()
        self.unsent = 0
        """The bytes in the queue."""

    @property
    def full(self) -> bool:
        """Whether so much is queued that nothing should be added."""
        return self.unsent >= MOST_UNSENT

    def send_whole(self, message: bytes, listening: bool = True) -> None:
        """As :meth:`Channel.send_whole`, without waiting."""
        if self._queue:
            self._send_rest(message, 0, [], "", listening)
        else:
            super().send_whole(message, listening)

    def flush(self) -> bool:
        """Send what the socket takes. Returns whether all is sent. Raises Disconnected."""
        while self._queue:
            data, fds = self._queue[0]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self._sock.sendmsg([data], ancillary, SEND)
            except BlockingIOError:
                return False
            except OSError as error:
                raise Disconnected(f"sending: {error.strerror}") from None
            close_fds(fds)
            self.unsent -= sent
            if sent < len(data):
                self._queue[0] = data[sent:], fds
            else:
                self._queue.popleft()
        return True

    def close(self) -> None:
        """As :meth:`Channel.close`; what is queued is lost."""
        for _, fds in self._queue:
            close_fds(fds)
        self._queue.clear()
        super().close()

    def _send_pieces(
        self, pieces: list[bytes | bytearray | memoryview], size: int, fds: Sequence[int], name: str, listening: bool
    ) -> None:
        if self._queue:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            self._send_rest(b"".join(pieces), 0, ancillary, name, listening)
        else:
            super()._send_pieces(pieces, size, fds, name, listening)

    def _send_rest(
        self, data: bytes, sent: int, ancillary: list[tuple[int, int, array.array[int]]], name: str, listening: bool
    ) -> None:
        """Queue the bytes from ``sent`` on."""
        given = [fd for _, _, some in ancillary for fd in some]
        try:
            fds = duplicates(given)
        except OSError as error:
            raise unsendable(name, given) or VfioUserError(
                f"{name}: {error.strerror}", error.errno or errno.EIO
            ) from None
        self._queue.append((memoryview(data)[sent:], fds))
        self.unsent += len(data) - sent
        self._blocked(self)
