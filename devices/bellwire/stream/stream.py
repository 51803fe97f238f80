"""Bytes both ways, with nobody ever waiting."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Sequence

from bellwire.errors import BellwireError

Pieces = Sequence[bytes | memoryview]
LARGEST = 1 << 16
MOST_PIECES = 1024


class StreamError(BellwireError):
    """A backend that cannot be opened, or is not known."""


class Stream:
    """A peer, or none at present, behind one descriptor that stays the same: have :meth:`PciDevice.watch` look at it.

    It can be read when there is something to :meth:`receive`, when a peer has come or gone, and when a peer that
    would not take more from :meth:`send` may take more now.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._peer = -1
        self._out = -1

    def fileno(self) -> int:
        """The one that stays the same."""
        return self._epoll.fileno()

    @property
    def connected(self) -> bool:
        """Whether anybody is there."""
        return self._peer >= 0 or self._out >= 0

    def receive(self, size: int = LARGEST) -> bytes:
        """What has come, at most ``size`` bytes; none when there is nothing now."""
        if self._peer < 0:
            return b""
        try:
            data = os.read(self._peer, size)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self.hang_up()
        return data

    def send(self, pieces: Pieces) -> int:
        """Pass bytes on: how many were taken. Without a peer all are, and are lost."""
        size = sum(map(len, pieces))
        if self._out < 0 or not size:
            return size
        try:
            sent = os.writev(self._out, pieces[:MOST_PIECES])
        except BlockingIOError:
            sent = 0
        except OSError:
            self.hang_up()
            return size
        if sent < size:
            self.await_room()
        return sent

    def look(self) -> None:
        """Call it when the descriptor can be read, before anything else: peers come and room is found here."""
        if self._peer >= 0 and self._peer == self._out:
            self._epoll.modify(self._peer, select.EPOLLIN)

    def await_room(self) -> None:
        """Become readable when there is room again."""
        if self._peer == self._out:
            self._epoll.modify(self._peer, select.EPOLLIN | select.EPOLLOUT)

    def hang_up(self) -> None:
        """The peer is gone."""
        if self._peer >= 0:
            self._epoll.unregister(self._peer)
        for fd in {self._peer, self._out} - {-1}:
            self.let_go(fd)
        self._peer = self._out = -1

    def let_go(self, fd: int) -> None:
        """Close a descriptor of the peer's."""
        os.close(fd)

    def take(self, fd: int, out: int | None = None) -> None:
        """Talk through ``fd`` from now on, or read from it and write to ``out``."""
        os.set_blocking(fd, False)
        self._peer = fd
        self._out = fd if out is None else out
        try:
            self._epoll.register(fd, select.EPOLLIN)
        except OSError as error:
            if error.errno != errno.EPERM:  # a regular file has nothing to wait for, and nothing to say
                raise
            self._peer = -1

    def close(self) -> None:
        """Hang up for good."""
        self.hang_up()
        self._epoll.close()
