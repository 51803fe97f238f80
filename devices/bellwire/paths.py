"""Where a path leads, found so that no other user can lead it elsewhere (docs/security.md, "Files, sockets and code").

A path is walked name by name, by descriptors. A symbolic link on the way is followed if its owner is root or the
process's own user, and if nobody else may write the folder that it lies in; a sticky folder, such as /tmp, may be
written by all. What was found stays found: the folder is held open, and what is in it is opened by its descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

from bellwire.trust import others_may_write, trusted_users, user

MOST_LINKS = 40  # as path_resolution(7)
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_ITSELF = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
REGULAR = frozenset({stat.S_IFREG})
WRITABLE = (stat.S_IFREG, stat.S_IFCHR, stat.S_IFIFO)
"""The kinds of files that a user may name for output."""
_TRIES = 8  # for a name that others make and remove


class PathError(PermissionError):
    """Another user could choose what is at a path. ``strerror`` says who, ``hint`` what to do about it."""

    def __init__(self, why: str, path: str, hint: str = "", number: int = errno.EACCES) -> None:
        super().__init__(number, why, path)
        self.hint = hint


def why(error: OSError) -> str:
    """What an error says, for a message that has named the path already; with the hint of a :class:`PathError`."""
    hint = f"; {error.hint}" if isinstance(error, PathError) and error.hint else ""
    return f"{error.strerror or error}{hint}"


class Doubt(NamedTuple):
    """A reason why another user could change what is at a path: ``place`` is the folder, link or file."""

    place: str
    why: str
    hint: str


class Place:
    """Where ``path`` leads: the descriptor ``folder`` of a folder, and the ``name`` in it. Use it as a block.

    If there is a link at ``path`` itself, it is followed unless ``follow`` is false. Nothing needs to be at ``path``,
    but its folder must exist. Raises an OSError; a :class:`PathError` for a link that is not trusted.
    """

    def __init__(self, path: Path | str, *, follow: bool = True) -> None:
        self.path = Path(path)
        self.folder = -1
        self.name = "."
        self._where = "/" if self.path.is_absolute() else "."
        self._passed: list[tuple[str, os.stat_result, bool]] = []
        """The folders and links on the way, in order: their paths, states, and whether others may write each."""
        self._links = 0
        self._by_kernel = False
        try:
            self._enter(os.open(self._where, _FOLDER))
            self._walk(deque(_names(os.fspath(path))), follow)
        except OSError as error:
            self.close()
            if not isinstance(error, PathError):
                error.filename = os.fspath(path)
            raise

    @classmethod
    def inside(cls, folder: int, path: Path) -> Self:
        """The last name of ``path`` in a folder that is open as ``folder``. A link there is not followed."""
        made = cls.__new__(cls)
        made.path, made._where, made.name = path, os.fspath(path.parent), path.name
        made.folder, made._passed, made._links, made._by_kernel = -1, [], 0, False
        made._enter(os.dup(folder))
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        if self.folder != -1:
            os.close(self.folder)
            self.folder = -1

    def doubts(self, owners: Collection[int] | None = None) -> Iterator[Doubt]:
        """The reasons why a user who is not among ``owners`` could lead the path elsewhere, the first folder first."""
        trusted = trusted_users() if owners is None else owners
        for place, status, open_to_others in self._passed:
            yield from _doubts(place, status, open_to_others, trusted)

    def check(self, fd: int, owners: Collection[int] | None = None) -> None:
        """Raise a PathError if a user who is not among ``owners`` could change the file ``fd`` or lead to another."""
        trusted = trusted_users() if owners is None else owners
        status = os.fstat(fd)
        own = _doubts(os.path.join(self._where, self.name), status, others_may_write(status, fd), trusted)
        for place, why, hint in (*self.doubts(trusted), *own):
            raise PathError(why, place, hint)

    def status(self) -> os.stat_result | None:
        """The state of what is there; None if nothing is."""
        try:
            return os.stat(self.name, dir_fd=self.folder, follow_symlinks=self._by_kernel)
        except FileNotFoundError:
            return None

    def pin(self) -> int:
        """A descriptor of what is there (O_PATH), which the caller owns. It opens nothing."""
        flags = _ITSELF & ~os.O_NOFOLLOW if self._by_kernel else _ITSELF
        try:
            return os.open(self.name, flags, dir_fd=self.folder)
        except OSError as error:
            error.filename = os.fspath(self.path)
            raise

    def open(self, flags: int, mode: int = 0o600, kinds: Collection[int] = REGULAR) -> int:
        """Open the file, which the caller owns; with O_CREAT a new one where there is none.

        Only the ``kinds`` (S_IFREG and the like) are opened, and the wait for the far end of a FIFO never begins.
        Where others may write the folder, a file with a second name, and with O_CREAT one of another user, is refused:
        it may be there to be written to in their place.
        """
        for _ in range(_TRIES):
            try:
                pinned = self.pin()
            except FileNotFoundError:
                if not flags & os.O_CREAT:
                    raise
                with contextlib.suppress(FileExistsError):
                    return self._make(flags, mode)
                continue
            try:
                self._admit(os.fstat(pinned), flags, kinds)
                fd = os.open(f"/proc/self/fd/{pinned}", flags & ~os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC)
                os.set_blocking(fd, not flags & os.O_NONBLOCK)
                return fd
            except OSError as error:
                error.filename = os.fspath(self.path)
                raise
            finally:
                os.close(pinned)
        raise PathError("somebody makes and removes it all the time", os.fspath(self.path))

    def open_folder(self) -> int:
        """Open the folder that is there, to lock or to list it; the caller owns the descriptor."""
        pinned = self.pin()
        try:
            return os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            error.filename = os.fspath(self.path)
            raise
        finally:
            os.close(pinned)

    def create(self, data: bytes) -> None:
        """Write a new file, with the permissions that the umask leaves. A FileExistsError if anything is there."""
        with open(self._make(os.O_WRONLY, 0o666), "wb") as file:
            file.write(data)

    def replace(self, data: bytes, mode: int | None = None, *, aside: str = "", sync: bool = False) -> None:
        """Write ``data`` as the whole file, atomically: readers see the old file or the new one. See `replacing`."""
        with self.replacing(mode, aside=aside, sync=sync) as file:
            file.write(data)

    @contextlib.contextmanager
    def replacing(self, mode: int | None = None, *, aside: str = "", sync: bool = False) -> Iterator[BinaryIO]:
        """A context that writes a new file, which takes the place of what is there at its end.

        Nothing is replaced, and nothing left behind, if the context raises. Without ``mode`` the file has the
        permissions that the umask leaves. It is first written under another name; ``aside`` is for a folder with one
        writer, who may have died before. A PathError if there is anything but a file, or a link that was not followed.
        """
        if (status := self.status()) and stat.S_IFMT(status.st_mode) not in (stat.S_IFREG, stat.S_IFLNK):
            raise PathError(f"it is {_kind(status)}, expected a file", os.fspath(self.path))
        if aside:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=self.folder)
        aside = aside or f".{self.name}.{os.urandom(8).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(aside, flags, 0o666 if mode is None else 0o600, dir_fd=self.folder)
        try:
            with open(fd, "w+b") as file:
                yield file
                if mode not in (None, 0o600):  # it has that already; a boxed device may change no mode
                    os.fchmod(fd, mode)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(aside, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside, dir_fd=self.folder)
            raise

    def make_folder(self, mode: int = 0o777, *, exact: bool = False) -> bool:
        """Make a folder there. False if there is one already. Raises NotADirectoryError for anything else.

        The umask applies to ``mode`` unless it is ``exact``.
        """
        try:
            os.mkdir(self.name, mode, dir_fd=self.folder)
        except FileExistsError:
            found = self.status()
            if found is not None and not stat.S_ISDIR(found.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(self.path)) from None
            return False
        if exact:
            fd = self.open_folder()
            os.fchmod(fd, mode)
            os.close(fd)
        return True

    def remove_folder(self) -> None:
        """Remove the folder that is there, if it is empty."""
        with contextlib.suppress(OSError):
            os.rmdir(self.name, dir_fd=self.folder)

    def remove(self) -> None:
        """Remove the file's name. Nothing there is no error."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self.folder)

    def _walk(self, names: deque[str], follow: bool) -> None:
        while names:
            name = names.popleft()
            self.name = name
            if not names and not follow:
                return
            try:
                fd = os.open(name, _ITSELF, dir_fd=self.folder)
            except FileNotFoundError:
                if names:
                    raise
                return
            status = os.fstat(fd)
            if stat.S_ISLNK(status.st_mode):
                try:
                    if not self._is_the_kernels(status):
                        self._follow(name, fd, status, names)
                        continue
                finally:
                    os.close(fd)
                self._by_kernel = not names
                fd = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self.folder)
                status = os.fstat(fd)
            if not names:
                os.close(fd)
                return
            self._where = os.path.normpath(os.path.join(self._where, name))
            if not stat.S_ISDIR(status.st_mode):
                os.close(fd)
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._where)
            self._enter(fd)
            self.name = "."

    def _enter(self, fd: int) -> None:
        """Go on from the folder ``fd``, which this object owns then."""
        self.close()
        self.folder = fd
        status = os.fstat(fd)
        sticky = bool(status.st_mode & stat.S_ISVTX)
        self._passed.append((self._where, status, others_may_write(status, fd) and not sticky))

    def _follow(self, name: str, fd: int, link: os.stat_result, names: deque[str]) -> None:
        place = os.path.join(self._where, name)
        self._links += 1
        if self._links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), place)
        trusted = trusted_users()
        lies_in = _doubts(*self._passed[-1], trusted)
        for doubtful, why, hint in (*lies_in, *_doubts(place, link, False, trusted)):
            told = f"it {why}" if doubtful == place else f"{doubtful}: {why}"
            raise PathError(f"the link {place} is not followed: {told}", os.fspath(self.path), hint)
        self._passed.append((place, link, False))
        target = os.readlink("", dir_fd=fd)
        names.extendleft(reversed(_names(target)))
        self.name = "."
        if target.startswith("/"):
            self._where = "/"
            self._enter(os.open("/", _FOLDER))

    def _is_the_kernels(self, link: os.stat_result) -> bool:
        """Whether a link is in /proc: those of /proc/self/fd lead to what is open, whatever their text says."""
        try:
            return link.st_dev == os.stat("/proc").st_dev
        except OSError:
            return False

    def _make(self, flags: int, mode: int) -> int:
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(self.name, flags, mode, dir_fd=self.folder)

    def _admit(self, status: os.stat_result, flags: int, kinds: Collection[int]) -> None:
        if stat.S_IFMT(status.st_mode) not in kinds:
            raise PathError(f"it is {_kind(status)}, expected {' or '.join(_KINDS[kind] for kind in kinds)}", "")
        if not stat.S_ISREG(status.st_mode):
            return
        where, folder, _ = self._passed[-1]
        shared = bool(folder.st_mode & stat.S_ISVTX and folder.st_mode & (stat.S_IWOTH | stat.S_IWGRP))
        trusted = trusted_users()
        if shared and flags & os.O_CREAT and status.st_uid not in trusted | {folder.st_uid}:
            raise PathError(
                f"it belongs to {user(status.st_uid)}, and all may write {where}",
                "",
                "choose a folder of your own, or make the file yourself",
            )
        if status.st_nlink > 1 and (shared or any(_doubts(*self._passed[-1], trusted))):
            raise PathError("it has a second name, and others may write its folder", "", "copy it, or move it")


def check_folder(path: Path, owners: Collection[int] | None = None) -> None:
    """Raise a PathError if a user who is not among ``owners`` could change what is in a folder, or lead to another.

    What of it does not exist yet is left out. ``owners`` are root and the process's own user unless they are given.
    """
    path = path.absolute()
    for folder in (path, *path.parents):
        with contextlib.suppress(FileNotFoundError), Place(folder / "_") as place:
            for doubtful, told, hint in place.doubts(owners):
                raise PathError(told, doubtful, hint)
            return


def make_folders(path: Path, mode: int = 0o777, *, exact: bool = False) -> list[Path]:
    """Make a folder and its parents, following trusted links alone. Returns those that were made, outermost first."""
    made = []
    for folder in (*reversed(path.parents), path):
        with Place(folder) as place:
            if place.make_folder(mode, exact=exact):
                made.append(folder)
    return made


def open_file(path: Path, owners: Collection[int] | None = None) -> int:
    """Open a regular file that nobody except ``owners`` can have chosen: neither it nor a folder on the way to it.

    ``owners`` are root and the process's own user unless they are given. The caller owns the descriptor. Raises an
    OSError; a :class:`PathError` names the folder or file, and who may write it.
    """
    with Place(path.absolute()) as place:
        fd = place.open(os.O_RDONLY)
        try:
            place.check(fd, owners)
        except BaseException:
            os.close(fd)
            raise
        return fd


def open_any_file(path: Path) -> int:
    """Open a regular file, whoever can have chosen it. It waits for no FIFO. The caller owns the descriptor."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise PathError(f"it is {_kind(status)}, expected a file", os.fspath(path))
    return fd


_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a character device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
}


def _kind(status: os.stat_result) -> str:
    return _KINDS.get(stat.S_IFMT(status.st_mode), "something else")


def _names(path: str) -> list[str]:
    if not path:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return [name for name in path.split("/") if name not in ("", ".")]


def _doubts(place: str, status: os.stat_result, open_to_others: bool, trusted: Collection[int]) -> Iterator[Doubt]:
    if status.st_uid not in trusted:
        owners = " or ".join("root" if uid == 0 else user(uid) for uid in sorted(trusted))
        hint = f"it must belong to {owners}: chown it, or use another path"
        yield Doubt(place, f"belongs to {user(status.st_uid)}", hint)
    if open_to_others:
        yield Doubt(place, "others than its owner may write it", f"chmod go-w {place}")
