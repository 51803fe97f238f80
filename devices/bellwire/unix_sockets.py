"""UNIX sockets at paths that other users may meddle with: bound, connected and removed by descriptor."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bellwire.paths import PathError, Place
from bellwire.trust import asking_users, user

LONGEST = 107  # bytes of a path: sockaddr_un has 108 with the NUL
REPLACED = "another process has replaced the socket"
_UCRED = struct.Struct("iII")
_TRIES = 8  # how many others may come between our look and our next step


class Bound:
    """Binds ``sock``, which the caller owns, to ``path``. A socket there on which nobody listens is replaced.

    A live one is an error, and so is another process that is making its own at this moment. A stream socket listens
    afterwards, with room for ``backlog`` clients.

    With ``mode`` the socket has these permissions, and never wider ones; without, those that the umask leaves.
    ``ids`` are its user and group; -1 leaves the process's own. Raises an OSError.

    The owner of the folder may put something else at ``path`` at any time. What is there gets the mode and the owner,
    or is removed, only if it is the socket that was bound.
    """

    def __init__(
        self,
        sock: socket.socket,
        path: Path,
        backlog: int = 1,
        *,
        mode: int | None = None,
        ids: tuple[int, int] = (-1, -1),
    ) -> None:
        if len(os.fsencode(path)) > LONGEST:
            raise PathError(f"a socket's path has at most {LONGEST} bytes", os.fspath(path), "choose a shorter one")
        self.path = path
        self.identity = (-1, -1)
        """The device and the inode of the path."""
        with Place(path, follow=False) as place, _alone(place):
            self._bind(place, sock, mode)
            try:
                self._give(place, mode, ids)
                if sock.type == socket.SOCK_STREAM:
                    sock.listen(backlog)
            except BaseException:
                self.remove()
                raise

    @classmethod
    def inherited(cls, path: Path, identity: tuple[int, int]) -> Bound:
        """A socket that another process has bound to ``path``, which had this ``identity`` then."""
        bound = cls.__new__(cls)
        bound.path, bound.identity = path, identity
        return bound

    def remove(self) -> None:
        """Remove the socket's name, unless something else has it by now. Call it before the socket is closed."""
        with contextlib.suppress(OSError), Place(self.path, follow=False) as place:
            if self._is_at(place):
                place.remove()

    def in_place(self) -> bool:
        """Whether the socket still has its name: clients can find it."""
        with contextlib.suppress(OSError), Place(self.path, follow=False) as place:
            return self._is_at(place)
        return False

    def _is_at(self, place: Place) -> bool:
        found = place.status()
        return found is not None and (found.st_dev, found.st_ino) == self.identity

    def _bind(self, place: Place, sock: socket.socket, mode: int | None) -> None:
        if mode is not None:
            os.fchmod(sock.fileno(), 0)  # bind(2) gives the file this mode
        for _ in range(_TRIES):
            clear(place, sock.type)
            try:
                return sock.bind(_address(place))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), os.fspath(place.path))

    def _give(self, place: Place, mode: int | None, ids: tuple[int, int]) -> None:
        """Set the owner and the mode. A second name (a hard link) would mean that it is somebody else's."""
        pinned = place.pin()
        try:
            found = os.fstat(pinned)
            fresh = found.st_uid == os.geteuid() and found.st_nlink == 1
            if not (stat.S_ISSOCK(found.st_mode) and fresh) or (mode is not None and stat.S_IMODE(found.st_mode)):
                raise PathError(REPLACED, os.fspath(self.path), "choose a folder that is yours alone")
            self.identity = found.st_dev, found.st_ino
            by_descriptor = f"/proc/self/fd/{pinned}"
            if ids != (-1, -1):
                os.chown(by_descriptor, *ids)
            if mode is not None:
                os.chmod(by_descriptor, mode)
        finally:
            os.close(pinned)


@contextlib.contextmanager
def _alone(place: Place) -> Iterator[None]:
    """While the block lasts, no other process of Bellwire makes a socket at ``place``. A PathError if one is doing so.

    Between the look for a live server and listen(2), another process would take the socket for a stale one. The lock is
    on a file beside the socket, which goes at the end of the block. Without the right to create that file, the block
    runs unlocked, and bind(2) says what is wrong.
    """
    with contextlib.ExitStack() as held:
        try:
            _lock(place, held)
        except BlockingIOError:
            why = "another process is making the socket"
            raise PathError(why, os.fspath(place.path), "stop that process, or choose another path") from None
        except OSError:
            pass
        yield


def _lock(place: Place, held: contextlib.ExitStack) -> None:
    name, flags = f".{place.name}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for _ in range(_TRIES):
        file = os.open(name, flags, 0o600, dir_fd=place.folder)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_nlink:  # else its last owner has just removed it
                held.callback(os.close, file)
                held.callback(os.unlink, name, dir_fd=place.folder)
                return
        except BaseException:
            os.close(file)
            raise
        os.close(file)
    raise BlockingIOError


def clear(place: Place, kind: int) -> None:
    """Remove the socket at ``place`` if nobody listens on it. Raises an OSError for a live one and for anything else.

    The socket is moved aside first. If another process has put a new one there since the look, that one is put back.
    """
    try:
        pinned = place.pin()
    except FileNotFoundError:
        return
    try:
        stale = os.fstat(pinned)
        if not stat.S_ISSOCK(stale.st_mode):
            why = "it exists and is not a socket"
            raise PathError(why, os.fspath(place.path), "choose another path, or remove it yourself")
        refused = probe(pinned, kind)
        if refused != errno.ECONNREFUSED:
            live = refused in (0, errno.EAGAIN, errno.EPROTOTYPE)
            why = "a live server listens there" if live else os.strerror(refused)
            number = errno.EADDRINUSE if live else refused
            raise PathError(why, os.fspath(place.path), "stop that server, or choose another path", number)
        _remove(place, stale)
    finally:
        os.close(pinned)


def probe(pinned: int, kind: int = socket.SOCK_STREAM) -> int:
    """Try to connect to the socket file ``pinned``. Returns the errno: ECONNREFUSED if nobody listens."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.setblocking(False)
        return sock.connect_ex(f"/proc/self/fd/{pinned}")


def connect(sock: socket.socket, path: Path) -> None:
    """Connect ``sock`` to the socket at ``path``, following trusted links alone. Raises an OSError."""
    with reached(path) as address:
        try:
            sock.connect(address)
        except OSError as error:
            error.filename = os.fspath(path)
            raise


@contextlib.contextmanager
def reached(path: Path) -> Iterator[str]:
    """The address, for connect(2) in the block, of the socket at ``path``. Trusted links alone are followed."""
    with Place(path) as place:
        pinned = place.pin()
    try:
        yield f"/proc/self/fd/{pinned}"
    finally:
        os.close(pinned)


class Peer(NamedTuple):
    """The process at the far end of a connection, as the kernel has seen it when it listened or connected."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{user(self.uid)}, process {self.pid}"


def peer(sock: socket.socket) -> Peer:
    """The far end of a connected socket (SO_PEERCRED in unix(7))."""
    return Peer(*_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))


def check_peer(sock: socket.socket, path: Path) -> None:
    """Raise a PathError unless a user who may be trusted listens at ``path``, to which ``sock`` is connected.

    That is root, this process's user or the one who has called sudo. It is also the owner of the folder, if only root
    can have made that folder, as a unit's RuntimeDirectory=; and if the folder is root's, all whom root lets write it.
    """
    listener = peer(sock)
    if listener.uid not in asking_users() and not _let_by_root(path.absolute().parent, listener.uid):
        hint = "ask as that user, or name the folder of the right one"
        raise PathError(f"{listener} listens there, who is neither root nor you", os.fspath(path), hint)


def _let_by_root(folder: Path, uid: int) -> bool:
    """Whether root alone can have let the user ``uid`` listen in ``folder``."""
    roots = {0, os.stat("/").st_uid}
    with Place(folder) as place:
        found, parent = place.status(), os.fstat(place.folder)
        if found is None or any(place.doubts(roots)) or parent.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return False
    return not found.st_mode & stat.S_IWOTH and found.st_uid in {uid, *roots}


def _address(place: Place) -> str:
    """A path for bind(2) that leads into the folder of ``place``; its own path, where nobody else can change that."""
    return f"/proc/self/fd/{place.folder}/{place.name}" if any(place.doubts()) else os.fspath(place.path)


def _remove(place: Place, stale: os.stat_result) -> None:
    aside = f".{os.urandom(8).hex()}"
    folder = place.folder
    try:
        os.rename(place.name, aside, src_dir_fd=folder, dst_dir_fd=folder)
    except FileNotFoundError:  # another process has removed it
        return
    moved = os.stat(aside, dir_fd=folder, follow_symlinks=False)
    if not _same(moved, stale):
        with contextlib.suppress(FileExistsError):
            os.link(aside, place.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    os.unlink(aside, dir_fd=folder)


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
