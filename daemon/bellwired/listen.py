"""The socket that a device is served on: a path of our own making, or a descriptor that we were given."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from bellwired.errors import CommandError

LONGEST = 107  # bytes: sockaddr_un has 108 with the NUL
BACKLOG = 16


def default_path(name: str) -> Path:
    """Where a device's socket goes unless the user says otherwise."""
    folder = os.environ.get("XDG_RUNTIME_DIR")
    return Path(folder) / f"bellwire-{name}.sock" if folder else Path(f"bellwire-{name}.sock")


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """Listen at ``path``, open to its owner alone; a stale socket is replaced, a live one is refused.

    The path is removed again at the end, if it is still ours.
    """
    if len(os.fsencode(path)) > LONGEST:
        raise CommandError(f"{path}: a socket's path has at most {LONGEST} bytes", "choose a shorter one")
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        except OSError as error:
            raise CommandError(f"{path}: cannot make the socket: {error.strerror}") from None
        finally:
            os.umask(mask)
        ours = _identity(path)
        try:
            listener.listen(BACKLOG)
            yield listener
        finally:
            if _identity(path) == ours:
                path.unlink(missing_ok=True)
    finally:
        listener.close()


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


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on; refuse anything else that is there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise CommandError(f"{path} exists and is not a socket", "choose another path, or remove it yourself")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        refused = probe.connect_ex(os.fspath(path))
    if refused == errno.ECONNREFUSED:
        path.unlink(missing_ok=True)
        return
    why = "a live server listens there" if refused in (0, errno.EAGAIN) else os.strerror(refused)
    raise CommandError(f"{path}: {why}", "stop that server, or choose another path")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
