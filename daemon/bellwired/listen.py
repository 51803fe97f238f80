"""The socket that a device is served on: one that we bind to a path, or an inherited descriptor."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from bellwired.errors import CommandError
from bellwired.notify import passed

LONGEST = 107  # bytes: sockaddr_un has 108 with the NUL
BACKLOG = 128  # if the backlog is full, a non-blocking client is refused at once
TURNS = 8  # how many others may finish with a path between our look and our lock


def default_path(name: str) -> Path:
    """The default path of a device's socket."""
    folder = os.environ.get("XDG_RUNTIME_DIR")
    return Path(folder) / f"bellwire-{name}.sock" if folder else Path(f"bellwire-{name}.sock")


class Listener:
    """A listening socket at ``path``, which is removed again at the end if it is still ours.

    A stale socket at ``path`` is replaced. A live one is an error, and so is another process that is making its own at
    this moment. ``mode`` has the permissions: every user who may write to the socket may use the device. The socket
    never has wider permissions, not even for a moment.

    The owner of the folder may put something else at ``path`` at any time. What is there gets the mode and the owner,
    or is removed, only if it is the socket that was bound.
    """

    def __init__(self, path: Path, mode: int = 0o600, owner: str = "", group: str = "") -> None:
        if len(os.fsencode(path)) > LONGEST:
            raise CommandError(f"{path}: a socket's path has at most {LONGEST} bytes", "choose a shorter one")
        ids = _user(owner), _group(group)
        self.path = path
        self._ours = (-1, -1)
        with _alone(path):
            _clear(path)
            self.socket = _stream(path)
            try:
                mask = os.umask(0o777)
                try:
                    self.socket.bind(os.fspath(path))
                finally:
                    os.umask(mask)
                self._ours = _give(path, ids, mode)
                self.socket.listen(BACKLOG)
            except OSError as error:
                self.close()
                raise CommandError(f"{path}: cannot make the socket: {error.strerror}") from None
            except CommandError:
                self.socket.close()
                raise

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()
        _remove(self.path, self._ours)


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
        raise _taken(path, refused)


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


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While the block lasts, no other process makes a socket at ``path``. Raises a CommandError if one is doing so.

    Between the look for a live server and listen(2), another process would take the socket for a stale one. The lock is
    on a file beside the socket, which goes at the end of the block. Without the right to create that file, the block
    runs unlocked, and bind(2) says what is wrong.
    """
    with contextlib.ExitStack() as held:
        try:
            folder = held.enter_context(_folder(path))
            _lock(path, folder, held)
        except BlockingIOError:
            raise CommandError(
                f"{path}: another process is making the socket", "stop that process, or choose another path"
            ) from None
        except OSError:
            pass
        yield


def _lock(path: Path, folder: int, held: contextlib.ExitStack) -> None:
    name = f".{path.name}.lock"
    for _ in range(TURNS):
        file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_nlink:  # else its last owner has just removed it
                held.callback(os.close, file)
                held.callback(os.unlink, name, dir_fd=folder)
                return
        except BaseException:
            os.close(file)
            raise
        os.close(file)
    raise BlockingIOError


def _give(path: Path, ids: tuple[int, int], mode: int) -> tuple[int, int]:
    """Set the owner and the mode of the socket that was just bound to ``path``. Returns its device and inode.

    The descriptor is of what is at ``path`` itself, never of the target of a link. It must look as bind(2) has left the
    socket: a second name (a hard link) would mean that it is somebody else's.
    """
    pinned = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(pinned)
        fresh = found.st_uid == os.geteuid() and found.st_nlink == 1 and stat.S_IMODE(found.st_mode) == 0
        if not stat.S_ISSOCK(found.st_mode) or not fresh:
            raise CommandError(
                f"{path}: another process has replaced the socket", "choose a folder that is yours alone"
            )
        try:
            by_descriptor = f"/proc/self/fd/{pinned}"
            if ids != (-1, -1):
                os.chown(by_descriptor, *ids)
            os.chmod(by_descriptor, mode)
        except OSError:
            _remove(path, (found.st_dev, found.st_ino))
            raise
        return found.st_dev, found.st_ino
    finally:
        os.close(pinned)


def _remove(path: Path, which: tuple[int, int]) -> None:
    """Remove the socket ``which`` (device and inode), unless something else is at ``path`` by now."""
    with contextlib.suppress(OSError), _folder(path) as folder:
        found = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
        if (found.st_dev, found.st_ino) == which:
            os.unlink(path.name, dir_fd=folder)


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    """A descriptor of the folder of ``path``: it stays the same folder if somebody moves it."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield folder
    finally:
        os.close(folder)


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on; refuse anything else that is there."""
    try:
        with _folder(path) as folder:
            found = os.stat(path.name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISSOCK(found.st_mode):
                raise CommandError(f"{path} exists and is not a socket", "choose another path, or remove it yourself")
            with _stream(path) as probe:
                probe.setblocking(False)
                refused = probe.connect_ex(f"/proc/self/fd/{folder}/{path.name}")
            if refused == errno.ECONNREFUSED:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path.name, dir_fd=folder)
                return
    except FileNotFoundError:
        return
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
    raise _taken(path, refused)


def _taken(path: Path, refused: int) -> CommandError:
    why = "a live server listens there" if refused in (0, errno.EAGAIN) else os.strerror(refused)
    return CommandError(f"{path}: {why}", "stop that server, or choose another path")


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
