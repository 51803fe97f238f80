"""A stream of bytes in both directions. No method waits."""

from __future__ import annotations

import fcntl
import os
import select
import termios

from bellwire.errors import BellwireError
from bellwire.pieces import Pieces, write

LARGEST = 1 << 16


class StreamError(BellwireError):
    """A stream cannot be opened, or its name is of no known kind."""


class Stream:
    """A connection to a peer, or to none at present. Pass its descriptor to :meth:`PciDevice.watch`.

    The descriptor can be read in three cases: there are bytes to :meth:`receive` (except during :meth:`hold`), a peer
    has come or gone, or a peer that was too slow for :meth:`send` can take more.
    """

    def __init__(self, name: str = "nobody") -> None:
        self.name = name
        """The name of the other end, for messages."""
        self._epoll = select.epoll()
        self._asked: dict[int, int] = {}
        self._in = -1
        self._out = -1
        self._held = False
        self._stuck = False

    def fileno(self) -> int:
        """The descriptor to watch. It stays the same when peers come and go."""
        return self._epoll.fileno()

    @property
    def connected(self) -> bool:
        """Whether there is a peer."""
        return self._in != -1 or self._out != -1

    def receive(self, size: int = LARGEST) -> bytes:
        """The bytes that have arrived, at most ``size``. Empty if there are none now."""
        if self._in == -1:
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
        """Stop or resume watching for input. While it is stopped, the kernel's buffer fills, and the peer waits."""
        if held is not self._held:
            self._held = held
            self._ask()

    def send(self, pieces: Pieces) -> int:
        """Send bytes. Returns how many the peer has taken. Without a peer all are dropped, and count as taken."""
        size = sum(map(len, pieces))
        if self._out == -1 or not size:
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
        """Find out which peers have come or gone. Call it first whenever the descriptor can be read."""
        self._epoll.poll(0)  # takes an edge-triggered event, which would else be reported again
        if self._stuck:
            self._stuck = False
            self._ask()
        if self._held and self._in != -1 and _has_left(self._in):
            self._end_input()

    def hang_up(self) -> None:
        """Close the descriptors of the peer."""
        fds = {self._in, self._out} - {-1}
        self._in = self._out = -1
        self._stuck = False
        self._ask()
        for fd in fds:
            self.let_go(fd)

    def let_go(self, fd: int) -> None:
        """Close one descriptor of the peer. A subclass may keep it open."""
        os.close(fd)

    def take(self, fd: int, out: int | None = None) -> None:
        """Use ``fd`` for the peer from now on, or ``fd`` for input and ``out`` for output. The stream owns them."""
        self._in = fd
        self._out = fd if out is None else out
        for each in (self._in, self._out):
            os.set_blocking(each, False)
        try:
            self._epoll.register(fd, 0)
        except PermissionError:
            self._in = -1  # epoll refuses a regular file, which never blocks: it is for output only
        else:
            self._epoll.unregister(fd)
            self._ask()

    def close(self) -> None:
        """Hang up, and close the stream."""
        self.hang_up()
        self._epoll.close()

    def _end_input(self) -> None:
        """The input has ended. If the same descriptor is the output, that has ended too."""
        if self._out in (-1, self._in):
            self.hang_up()
        else:
            fd, self._in = self._in, -1
            self._ask()
            self.let_go(fd)

    def _end_output(self) -> None:
        """The peer reads no more. Bytes that it sent before may still be unread."""
        if self._in == -1:
            self.hang_up()
        elif self._in == self._out:
            self._out = -1
        else:
            fd, self._out = self._out, -1
            self.let_go(fd)

    def _ask(self) -> None:
        """Watch only the events that the stream can handle now: any other event would end every wait."""
        wanted = {}
        if self._in != -1:
            wanted[self._in] = select.EPOLLRDHUP | select.EPOLLET if self._held else select.EPOLLIN
        if self._stuck and self._out != -1:
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
    """Whether the peer behind ``fd`` has gone, and all its bytes have been read."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return bool(poll.poll(0)) and not any(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))
