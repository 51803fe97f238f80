"""The kinds of streams that a user can name."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import termios
import tty
from collections.abc import Callable
from pathlib import Path

from bellwire import unix_sockets
from bellwire.paths import WRITABLE, Place, why
from bellwire.pieces import Pieces, write
from bellwire.stream.stream import Stream, StreamError
from bellwire.unix_sockets import LONGEST, Bound

BACKENDS = "pty, pty:LINK, unix:PATH, connect:PATH, file:PATH, stdio or null"
"""The kinds of streams, for help texts."""


class Pty(Stream):
    """A pseudo-terminal. ``link`` becomes a symbolic link to the end that programs open.

    The device cannot see whether a program has that end open. While no program reads, the kernel keeps bytes as long
    as it has room; later bytes are lost.
    """

    def __init__(self, link: Path | None = None) -> None:
        super().__init__()
        self._link = link
        ours, self._theirs = os.openpty()  # theirs stays open: otherwise ours would always be readable
        tty.setraw(self._theirs, termios.TCSANOW)
        self.name = self.path = os.ttyname(self._theirs)
        self.take(ours)
        if link:
            try:
                with Place(link, follow=False) as place:
                    _renew_link(place, self.path)
            except OSError as error:
                self._link = None
                self.close()
                raise StreamError(f"pty link {link}: {why(error)}") from error

    def send(self, pieces: Pieces) -> int:
        """Write ``pieces``, and report all of them as sent. What the kernel has no room for is lost."""
        write(self._out, pieces)
        return sum(map(len, pieces))

    def close(self) -> None:
        """Close the pty, and remove the link."""
        os.close(self._theirs)
        if self._link:
            with contextlib.suppress(OSError), Place(self._link, follow=False) as place:
                if os.readlink(place.name, dir_fd=place.folder) == self.path:
                    place.remove()
        super().close()


class Listening(Stream):
    """A listening UNIX socket. It serves one peer at a time; the next one waits until that peer leaves."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"socket {path}")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._bound = Bound(self._listener, path)
        except OSError as error:
            self._listener.close()
            self._epoll.close()
            raise StreamError(f"socket {path}: {why(error)}") from error
        self._epoll.register(self._listener, select.EPOLLIN)

    def look(self) -> None:
        """Accept a peer that has connected, besides what :meth:`Stream.look` does."""
        super().look()
        if not self.connected:
            with contextlib.suppress(OSError):
                peer, _ = self._listener.accept()
                self._epoll.unregister(self._listener)  # the next peer waits in the backlog
                self.take(peer.detach())

    def hang_up(self) -> None:
        """Drop the peer, and accept the next one."""
        if self.connected:
            super().hang_up()
            self._epoll.register(self._listener, select.EPOLLIN)

    def close(self) -> None:
        """Close the sockets, and remove the socket's name."""
        super().close()
        self._bound.remove()
        self._listener.close()


class StandardStreams(Stream):
    """Standard input and output of this process. A terminal delivers each key at once; Ctrl-C still ends it."""

    def __init__(self) -> None:
        super().__init__("standard input and output")
        self._before = [os.get_blocking(fd) for fd in (0, 1)]
        self._terminal = termios.tcgetattr(0) if os.isatty(0) else None
        if self._terminal:
            tty.setcbreak(0, termios.TCSANOW)
        self.take(0, 1)

    def let_go(self, fd: int) -> None:
        """Leave the descriptor open: the process owns it."""

    def close(self) -> None:
        """Restore the terminal's settings, and leave the descriptors open."""
        super().close()
        if self._terminal:
            termios.tcsetattr(0, termios.TCSANOW, self._terminal)
        for fd, blocking in enumerate(self._before):
            os.set_blocking(fd, blocking)


def connect(path: Path) -> Stream:
    """Connect to a listening UNIX socket. Raises a StreamError."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        unix_sockets.connect(peer, path)
    except OSError as error:
        peer.close()
        raise StreamError(f"socket {path}: {why(error)}") from error
    stream = Stream(f"socket {path}")
    stream.take(peer.detach())
    return stream


def write_to(path: Path) -> Stream:
    """Open a file that sent bytes are appended to. Nothing is ever received. Raises a StreamError."""
    try:
        with Place(path) as place:
            fd = place.open(os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600, WRITABLE)
    except OSError as error:
        raise StreamError(f"file {path}: {why(error)}") from error
    stream = Stream(f"file {path}")
    stream.take(fd)
    return stream


def _renew_link(place: Place, target: str) -> None:
    """Make a symbolic link. One that is there is replaced; anything else stays, and is a FileExistsError."""
    found = place.status()
    if found is not None and stat.S_ISLNK(found.st_mode):
        place.remove()
    os.symlink(target, place.name, dir_fd=place.folder)


_WITH_PATH: dict[str, Callable[[Path], Stream]] = {
    "pty": Pty,
    "unix": Listening,
    "connect": connect,
    "file": write_to,
}
_PLAIN: dict[str, Callable[[], Stream]] = {"pty": Pty, "stdio": StandardStreams, "null": Stream}


def open_stream(name: str) -> Stream:
    """Open the stream that ``name`` stands for, one of :data:`BACKENDS`. Raises a StreamError."""
    kind, colon, path = name.partition(":")
    if stream_fault(name) is not None:
        raise StreamError(f"no stream {name!r}: expected {stream_fault(name)}")
    return _WITH_PATH[kind](Path(path)) if colon else _PLAIN[kind]()


def stream_fault(name: str) -> str | None:
    """What was expected, if ``name`` is no stream; else None. It opens nothing: for the ``check`` of an option."""
    kind, colon, path = name.partition(":")
    known = bool(path) and kind in _WITH_PATH if colon else kind in _PLAIN
    if known and kind in ("unix", "connect") and len(os.fsencode(path)) > LONGEST:
        return f"a socket's path: at most {LONGEST} bytes"
    return None if known else BACKENDS
