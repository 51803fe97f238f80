"""Bytes both ways, with nobody ever waiting."""

from __future__ import annotations

import fcntl
import os
import select
import termios

from bellwire.errors import BellwireError
from bellwire.pieces import Pieces, write

LARGEST = 1 << 16


class StreamError(BellwireError):
    """A backend that cannot be opened, or is not known."""


class Stream:
    """A peer, or none at present, behind one descriptor that stays the same: have :meth:`PciDevice.watch` look at it.

    It can be read when there is something to :meth:`receive` (unless that is on :meth:`hold`), when a peer has come
    or gone, and when a peer that would not take more from :meth:`send` may take more now.
    """

    def __init__(self, name: str = "nobody") -> None:
        self.name = name
        """Who or what is at the other end, for messages."""
        self._epoll = select.epoll()
        self._asked: dict[int, int] = {}
        self._in = -1
        self._out = -1
        self._held = False
        self._stuck = False

    def fileno(self) -> int:
        """The one that stays the same."""
        return self._epoll.fileno()

    @property
    def connected(self) -> bool:
        """Whether anybody is there."""
        return self._in >= 0 or self._out >= 0

    def receive(self, size: int = LARGEST) -> bytes:
        """What has come, at most ``size`` bytes; none when there is nothing now."""
        if self._in < 0:
            return b""
        try:
            data = os.read(self._in, size)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self._end_input()
        return data

    def hold(self, held: bool) -> None:
        """Leave what the peer has to say where it is: once the kernel has no more room for it, the peer waits."""
        if held is not self._held:
            self._held = held
            self._ask()

    def send(self, pieces: Pieces) -> int:
        """Pass bytes on: how many were taken. Without a peer all are, and are lost."""
        size = sum(map(len, pieces))
        if self._out < 0 or not size:
            return size
        try:
            sent = write(self._out, pieces)
        except OSError:
            self._end_output()
            return size
        if sent < size:
            self._stuck = True
            self._ask()
        return sent

    def look(self) -> None:
        """Call it when the descriptor can be read, before anything else: who has come or gone is found here."""
        self._epoll.poll(0)  # an edge is told of until somebody has asked for it
        if self._stuck:
            self._stuck = False
            self._ask()
        if self._held and self._in >= 0 and _has_left(self._in):
            self._end_input()

    def hang_up(self) -> None:
        """The peer is gone."""
        fds = {self._in, self._out} - {-1}
        self._in = self._out = -1
        self._stuck = False
        self._ask()
        for fd in fds:
            self.let_go(fd)

    def let_go(self, fd: int) -> None:
        """Close a descriptor of the peer's."""
        os.close(fd)

    def take(self, fd: int, out: int | None = None) -> None:
        """Talk through ``fd`` from now on, or read from it and write to ``out``."""
        self._in = fd
        self._out = fd if out is None else out
        for each in (self._in, self._out):
            os.set_blocking(each, False)
        try:
            self._epoll.register(fd, 0)
        except PermissionError:
            self._in = -1  # a regular file has nothing to wait for, and nothing to say
        else:
            self._epoll.unregister(fd)
            self._ask()

    def close(self) -> None:
        """Hang up for good."""
        self.hang_up()
        self._epoll.close()

    def _end_input(self) -> None:
        """Nothing will come any more; on a descriptor for both ways, nothing can be sent either."""
        if self._out in (-1, self._in):
            self.hang_up()
        else:
            fd, self._in = self._in, -1
            self._ask()
            self.let_go(fd)

    def _end_output(self) -> None:
        """Nobody listens any more, but what the peer said before it left may still be unread."""
        if self._in == -1:
            self.hang_up()
        elif self._in == self._out:
            self._out = -1
        else:
            fd, self._out = self._out, -1
            self.let_go(fd)

    def _ask(self) -> None:
        """Have the epoll look at what there is use for: anything else would show, and wake us, for ever."""
        wanted = {}
        if self._in >= 0:
            wanted[self._in] = select.EPOLLRDHUP | select.EPOLLET if self._held else select.EPOLLIN
        if self._stuck and self._out >= 0:
            wanted[self._out] = wanted.get(self._out, 0) | select.EPOLLOUT
        for fd in self._asked.keys() - wanted.keys():
            self._epoll.unregister(fd)
        for fd, events in wanted.items():
            if fd not in self._asked:
                self._epoll.register(fd, events)
            elif self._asked[fd] != events:
                self._epoll.modify(fd, events)
        self._asked = wanted


def _has_left(fd: int) -> bool:
    """Whether the peer behind ``fd`` has gone, and all that it said has been read."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return bool(poll.poll(0)) and not any(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
