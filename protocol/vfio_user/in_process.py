"""A client and a server's session joined in one thread: no socket, and nobody else runs.

For tests that go through the protocol. When one end has to wait, the other end works; if it then has nothing to say,
the wait ends at once by TimedOut. So such a test cannot hang, and always takes the same course.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from vfio_user.backend import Backend
from vfio_user.channel import Channel
from vfio_user.client import Client
from vfio_user.errors import TimedOut
from vfio_user.journal import Journal
from vfio_user.message import Message, close_fds, duplicates
from vfio_user.session import Session

_UCRED = struct.Struct("3i")
Piece = bytes | bytearray | memoryview
Ancillary = Sequence[tuple[int, int, Sequence[int]]]


class End:
    """One end of a stream in memory, with the methods of a socket that a channel uses. Make two by :meth:`pair`.

    ``work`` lets the far end do what it can do now. ``fileno`` is an eventfd, readable while bytes wait here.
    """

    def __init__(self) -> None:
        self.work: Callable[[], object] = lambda: None
        self._far: End | None = None
        self._waiting: deque[tuple[memoryview, list[int]]] = deque()
        self._readable = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ended = False  # the far end sends nothing more

    @classmethod
    def pair(cls) -> tuple[End, End]:
        """Both ends."""
        one, other = cls(), cls()
        one._far, other._far = other, one
        return one, other

    def fileno(self) -> int:
        """The eventfd."""
        return self._readable

    def setblocking(self, _: bool) -> None:
        """An end never blocks."""

    def answers(self, answer: Callable[[], object]) -> None:
        """What this end does when the far end waits."""
        if self._far is not None:
            self._far.work = answer

    @property
    def readable(self) -> bool:
        """Whether a receive would find something: bytes, or the end of the stream."""
        return bool(self._waiting) or self._ended

    def send(self, data: Piece, _flags: int = 0) -> int:
        """Send all of ``data``. Raises BrokenPipeError if the far end is closed."""
        return self.sendmsg([data])

    def sendmsg(self, pieces: Sequence[Piece], ancillary: Ancillary = (), _flags: int = 0) -> int:
        """Send all pieces, with duplicates of the descriptors."""
        far = self._far
        if far is None or far._readable < 0:
            raise BrokenPipeError(32, "Broken pipe")
        data = b"".join(pieces)
        far._put(memoryview(data), duplicates([fd for _, _, fds in ancillary for fd in fds]))
        return len(data)

    def recvmsg_into(
        self, rooms: Sequence[memoryview], _size: int = 0, _flags: int = 0
    ) -> tuple[int, list[tuple[int, int, bytes]], int, None]:
        """Receive as from a socket: up to where other descriptors begin. Raises BlockingIOError for nothing."""
        if not self._waiting:
            if self._ended:
                return 0, [], 0, None
            raise BlockingIOError
        count, fds = 0, self._waiting[0][1]
        while self._waiting and count < len(rooms[0]) and (count == 0 or not self._waiting[0][1]):
            data, _ = self._waiting.popleft()
            part = min(len(data), len(rooms[0]) - count)
            rooms[0][count : count + part] = data[:part]
            count += part
            if part < len(data):
                self._waiting.appendleft((data[part:], []))
        if not self.readable:
            os.eventfd_read(self._readable)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        return count, ancillary, 0, None

    def shutdown(self, _how: int) -> None:
        """End the stream in both directions."""
        for end in (self, self._far):
            if end is not None:
                end._end()

    def getsockopt(self, _level: int, _option: int, _size: int) -> bytes:
        """SO_PEERCRED: the far end is this process."""
        return _UCRED.pack(os.getpid(), os.getuid(), os.getgid())

    def close(self) -> None:
        """Close this end, and what was not received."""
        if self._readable < 0:
            return
        for _, fds in self._waiting:
            close_fds(fds)
        self._waiting.clear()
        if self._far is not None:
            self._far._end()
        os.close(self._readable)
        self._readable = -1

    def _put(self, data: memoryview, fds: list[int]) -> None:
        if not self.readable:
            os.eventfd_write(self._readable, 1)
        self._waiting.append((data, fds))

    def _end(self) -> None:
        if self._readable >= 0 and not self.readable:
            os.eventfd_write(self._readable, 1)
        self._ended = True


class JoinedChannel(Channel):
    """A channel on an :class:`End`. Waiting lets the far end work, and takes no time."""

    def __init__(
        self, sock: socket.socket, max_transfer: int, timeout: float = 5.0, journal: Journal | None = None
    ) -> None:
        super().__init__(sock, max_transfer, timeout, journal)
        self.stream = cast("End", sock)
        self._replies: deque[Message] = deque()

    @property
    def ready(self) -> bool:
        """As :attr:`Channel.ready`."""
        return bool(self._replies) or super().ready

    def receive(self) -> Message | None:
        """As :meth:`Channel.receive`."""
        return self._replies.popleft() if self._replies else super().receive()

    def commands(self) -> Iterator[Message]:
        """The commands that have come. Replies are kept for :meth:`receive`: a caller further up waits for them."""
        while (message := super().receive()) is not None:
            if message.is_reply:
                self._replies.append(message._replace(payload=memoryview(bytes(message.payload))))
            else:
                yield message

    def close(self) -> None:
        """As :meth:`Channel.close`."""
        for message in self._replies:
            close_fds(message.fds)
        super().close()

    def _wait(self, events: int, deadline: float, why: str) -> int:
        if events & select.POLLIN and not (self._replies or self.stream.readable):
            self.stream.work()
        readable = self._replies or self.stream.readable
        ready = events & (select.POLLOUT | (select.POLLIN if readable else 0))
        if not ready:
            raise TimedOut(why)
        return ready


def client_of(end: End, **options: Any) -> Client:
    """A client on one end of a pair. From its VERSION on, it answers commands when the far end waits.

    Raises ValueError for ``twin``, which is a socket and a thread.
    """
    if options.get("twin"):
        end.close()
        raise ValueError("twin=True: its thread would run beside this one; leave it out, or use a client on a socket")
    client = Client(cast("socket.socket", end), channel=JoinedChannel, **options)
    channel = cast("JoinedChannel", client._channel)

    def answer() -> None:
        for message in channel.commands():
            client._serve(message)

    end.answers(answer)
    return client


@contextmanager
def joined(
    backend: Backend, *, server: dict[str, Any] | None = None, **client: Any
) -> Iterator[tuple[Client, Session]]:
    """A client and a session of ``backend``, with these options for the two; both are closed at the end."""
    ours, theirs = End.pair()
    session = Session(cast("socket.socket", theirs), backend, channel=JoinedChannel, **server or {})
    ours.work = session.service
    try:
        with client_of(ours, **client) as found:
            yield found, session
    finally:
        session.close()
