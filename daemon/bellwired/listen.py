"""The socket that a device is served on: one that we bind to a path, or an inherited descriptor."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import socket
from collections.abc import Iterator
from pathlib import Path

from bellwire.paths import PathError
from bellwire.unix_sockets import Bound
from bellwired.errors import CommandError
from bellwired.passed import passed

BACKLOG = 128  # if the backlog is full, a non-blocking client is refused at once


def default_path(name: str) -> Path:
    """The default path of a device's socket."""
    folder = os.environ.get("XDG_RUNTIME_DIR")
    return Path(folder) / f"bellwire-{name}.sock" if folder else Path(f"bellwire-{name}.sock")


class Listener:
    """A listening socket at ``path``, which is removed again at the end if it is still ours.

    A stale socket at ``path`` is replaced. A live one is an error, and so is another process that is making its own at
    this moment. ``mode`` has the permissions: every user who may write to the socket may use the device. The socket
    never has wider permissions, not even for a moment.

    The owner of the folder may put something else at ``path`` at any time: see :class:`bellwire.unix_sockets.Bound`.
    """

    def __init__(self, path: Path, mode: int = 0o600, owner: str = "", group: str = "") -> None:
        ids = _user(owner), _group(group)
        self.path = path
        self.lent = False
        """Whether another process listens on it, too: its path stays then."""
        self.socket = _stream(path)
        try:
            self._bound = Bound(self.socket, path, BACKLOG, mode=mode, ids=ids)
        except OSError as error:
            self.socket.close()
            why = error.strerror if isinstance(error, PathError) else f"cannot make the socket: {error.strerror}"
            raise CommandError(f"{path}: {why}", getattr(error, "hint", "")) from None

    @classmethod
    def inherited(cls, path: Path, sock: socket.socket, identity: tuple[int, int]) -> Listener:
        """A socket that another process has bound to ``path``, and lends: see :attr:`lent`. It is closed here."""
        listener = cls.__new__(cls)
        listener.path, listener.socket, listener.lent = path, sock, True
        listener._bound = Bound.inherited(path, identity)
        return listener

    @property
    def identity(self) -> tuple[int, int]:
        """The device and the inode of its path."""
        return self._bound.identity

    def in_place(self) -> bool:
        """Whether the socket is still at ``path``."""
        return self._bound.in_place()

    def close(self) -> None:
        """Stop listening."""
        if not self.lent:
            self._bound.remove()
        self.socket.close()


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen at ``path`` while the block lasts. Only the owner may connect."""
    listener = Listener(path)
    try:
        yield listener.socket
    finally:
        listener.close()


def refuse_live(path: Path) -> None:
    """Raise a CommandError if a server listens at ``path``."""
    with _stream(path) as probe:
        probe.setblocking(False)
        refused = probe.connect_ex(os.fspath(path))
    if refused in (0, errno.EAGAIN):
        raise CommandError(f"{path}: a live server listens there", "stop that server, or choose another path")


def inherited(fd: int) -> tuple[socket.socket, bool]:
    """The UNIX stream socket that was passed as ``fd``, and whether it listens (or is a client already)."""
    try:
        given = socket.socket(fileno=fd)
    except OSError as error:
        raise CommandError(
            f"--fd {fd}: not a socket: {error.strerror}", "pass a UNIX stream socket, listening or connected"
        ) from None
    if given.family != socket.AF_UNIX or given.type != socket.SOCK_STREAM:
        given.detach()
        raise CommandError(f"--fd {fd}: not a UNIX stream socket")
    given.set_inheritable(False)
    return given, bool(given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def activated() -> tuple[socket.socket, bool]:
    """The only UNIX stream socket that the service manager passed (sd_listen_fds(3)); the result of `inherited`."""
    given = list(passed())
    if len(given) != 1:
        for fd in given:
            os.close(fd)
        raise CommandError(
            f"--fd systemd: expected one socket from the service manager, got {len(given) or 'none'}",
            "start it through a .socket unit with one ListenStream=",
        )
    return inherited(given[0])


def _stream(path: Path) -> socket.socket:
    """A socket for ``path``, not yet bound."""
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:  # no descriptor left
        raise CommandError(f"{path}: cannot make the socket: {error.strerror}") from None


def _user(name: str) -> int:
    """A user's ID. -1 for no user: chown(2) then changes nothing."""
    try:
        return pwd.getpwnam(name).pw_uid if name else -1
    except KeyError:
        raise CommandError(f"there is no user {name!r}") from None


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid if name else -1
    except KeyError:
        raise CommandError(f"there is no group {name!r}") from None
