"""A parcel: all that a successor of a worker needs, in the queue of a socket, which outlives every process.

A process that holds a ledger writes each change into the socket pair, with the descriptors. The kernel keeps messages
and descriptors for as long as anybody has the pair open: a service manager, in its fd store, or another process. Who
takes the pair over reads the changes without taking them off the queue, so a second attempt finds them, too.

The queue has room for some hundred messages. So all that is held is written again from time to time, at the end of the
queue, and what came before is then taken off its front. Whenever the writer is killed, the messages in the queue, read
from the first to the last, have the right result.

:data:`FORMAT` is the number of all that is in here: the messages, the notes of :class:`vfio_user.Ledger`, and the
memory files that they come with (:mod:`vfio_user.journal`, :mod:`bellwire.serve.noted`).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from bellwired.workers import wire
from bellwired.workers.wire import Drop, Keep

FORMAT = 1
FULL = 96
"""Messages after which all that is held is to be written again. The kernel has room for 160 of them."""
LARGEST = 512  # bytes of a message in the queue; a longer one lies in a memory file
_SO_PEEK_OFF = 42


class About(Struct, tag=True):
    """What the holder itself knows of a device. The last one counts."""

    version: str
    """The version of Bellwire that has written it."""
    client: dict[str, Any] | None = None
    hand_overs: int = 0
    left: float = 0.0
    """When its worker has ended in order, by CLOCK_MONOTONIC; 0 while it runs."""


Content = Keep | Drop | About
_decoder: msgspec.json.Decoder[Content] = msgspec.json.Decoder(Content)


class Parcel:
    """A new parcel, or the one whose ends are ``exit`` and ``entrance``. It owns both."""

    def __init__(self, ends: tuple[socket.socket, socket.socket] | None = None) -> None:
        self.exit, self.entrance = ends or wire.pair()
        """The ends: messages are read from one, and written into the other."""
        for end in (self.exit, self.entrance):
            end.setblocking(False)
        self.length = 0
        """The messages in the queue. Of one that was taken over, after :meth:`read`."""

    def add(self, message: Content, fds: list[int]) -> None:
        """Write a message. The descriptors stay the caller's. Raises an OSError if there is no room."""
        wire.send(self.entrance, message, fds, LARGEST)
        self.length += 1

    def read(self) -> Iterator[tuple[Content, list[int]]]:
        """All messages, which stay in the queue. The caller owns the descriptors. Raises a WireError."""
        self.exit.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
        self.length = 0
        try:
            while True:
                try:
                    found = wire.received(self.exit, _decoder, peek=True)
                except BlockingIOError:
                    return
                if found is None:
                    return
                self.length += 1
                yield found
        finally:
            self.exit.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, -1)

    def replace(self, messages: Iterable[tuple[Content, list[int]]]) -> None:
        """Put ``messages``, which are all that is held, in the place of those in the queue. Raises an OSError."""
        old = self.length
        for message, fds in messages:
            self.add(message, fds)
        for _ in range(old):
            wire.discard(self.exit)
            self.length -= 1

    def clear(self) -> None:
        """Take everything out: the client leaves."""
        with contextlib.suppress(BlockingIOError):
            while self.exit.recv(1):
                pass
        self.length = 0

    def close(self) -> None:
        """Close both ends. What another process has open keeps its contents."""
        self.exit.close()
        self.entrance.close()
