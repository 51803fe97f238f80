"""The channel on which the back end sends requests of its own ("Back-end communication")."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from bellwire.vhost.connection import MOST_FDS
from bellwire.vhost.errors import BackendLost
from bellwire.vhost.messages import (
    HEADER,
    LARGEST_PAYLOAD,
    NEED_REPLY,
    REPLY,
    U64,
    BackendRequest,
    Header,
    header,
)

MOST_AT_ONCE = 64
"""Requests that are handled before the device gets its turn again."""
REFUSED = 1


class BackChannel:
    """A pair of sockets: the back end gets the end ``theirs``.

    A change of the configuration is noted, and told by :meth:`tell`. Everything else is refused: this front end offers
    neither an IOTLB nor pages of doorbells.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        ours.setblocking(False)
        self._sock = ours
        self._theirs: socket.socket | None = theirs
        self._data = b""
        self._noted = False
        self.changed: Callable[[], None] | None = None

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._sock.fileno()

    @property
    def theirs(self) -> int:
        """The back end's end, until :meth:`hand_over`."""
        assert self._theirs is not None
        return self._theirs.fileno()

    def hand_over(self) -> None:
        """The back end has its end: close ours of it, so that its crash is seen."""
        if self._theirs is not None:
            self._theirs.close()
            self._theirs = None

    def serve(self) -> None:
        """Handle the requests that have arrived. Raises BackendLost for what is none, and for a closed channel."""
        for _ in range(MOST_AT_ONCE):
            if not self._receive():
                return
            while (request := self._next()) is not None:
                self._handle(request)

    def tell(self) -> None:
        """Tell of a change of the configuration that has been noted."""
        if self._noted and self.changed is not None:
            self._noted = False
            self.changed()

    def close(self) -> None:
        """Close both ends."""
        self.hand_over()
        self._sock.close()

    def _receive(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, LARGEST_PAYLOAD, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except OSError as error:
            raise BackendLost(f"the back end's channel: {error.strerror}") from None
        for fd in fds:  # no request that is granted has any
            os.close(fd)
        if not data:
            raise BackendLost("the back end has closed its channel")
        self._data += data
        return True

    def _next(self) -> Header | None:
        """The next request that has arrived as a whole."""
        if len(self._data) < HEADER.size:
            return None
        found = Header.unpack(self._data[: HEADER.size])
        end = HEADER.size + found.size
        if len(self._data) < end:
            return None
        self._data = self._data[end:]
        return found

    def _handle(self, request: Header) -> None:
        if request.flags & REPLY:
            raise BackendLost(f"a reply came on the back end's channel (request {request.request})")
        result = REFUSED
        if request.request == BackendRequest.CONFIG_CHANGE_MSG:
            self._noted, result = True, 0
        if request.flags & NEED_REPLY:
            try:
                self._sock.send(header(request.request, U64.size, reply=True) + U64.pack(result), socket.MSG_NOSIGNAL)
            except OSError as error:  # a full buffer too: it has asked without end, and reads no answers
                raise BackendLost(f"the back end does not read its channel: {error.strerror}") from None
