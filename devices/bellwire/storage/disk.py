"""A disk: bytes that are read and written at offsets."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from bellwire.errors import BellwireError
from bellwire.linux import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate
from bellwire.paths import Place, why
from bellwire.pieces import MOST_PIECES, after

Buffers = Sequence[memoryview | bytearray]

LARGEST = (1 << 63) - 1  # bytes: off_t
_KINDS = (stat.S_IFREG, stat.S_IFBLK)
_ZEROES = bytes(1 << 20)
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
log = logging.getLogger("bellwire.storage")
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class StorageError(BellwireError):
    """An image cannot be opened or locked, or it does not fit the options."""


class Disk:
    """A disk of ``size`` bytes behind ``fd``, which it owns. The caller checks offsets and lengths.

    :meth:`read`, :meth:`write`, :meth:`flush`, :meth:`discard` and :meth:`zero` may wait for the medium. Any thread may
    call them, and they raise OSError. :meth:`try_read` never waits.
    """

    def __init__(
        self, fd: int, size: int, *, readonly: bool = False, instant: bool = False, direct: bool = False
    ) -> None:
        self.fd = fd
        self.size = size
        self.readonly = readonly
        self.instant = instant
        """Whether no access ever waits, since the bytes lie in memory."""
        self.direct = direct
        """Whether accesses bypass the page cache (O_DIRECT)."""
        self.at_once: int | None = None if instant or direct else _NOWAIT or None
        """Flags for a preadv that never waits; None if this kind of file has none."""
        self.view = memoryview(b"")
        """All bytes of a disk in memory, to be copied; empty for other disks."""
        self.lost = 0
        """The error number of a flush that has failed; else 0."""
        self.inherited = False
        """Whether a process before this one has had it."""
        self._path = Path()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        readonly: bool = False,
        size: int = 0,
        direct: bool = False,
        block: int = 512,
        folder: int = -1,
        lock: bool = True,
    ) -> Disk:
        """Open a raw file or a block device. Every access is of whole blocks of ``block`` bytes.

        If the file is missing or empty, a sparse file of ``size`` bytes is made. An existing image keeps its size, and
        a warning is logged if ``size`` differs. The image is locked (flock(2)): no two Bellwire devices write to it.
        Without ``lock``, :meth:`lock` does that later.
        A link is followed if root or this user has made it (:mod:`bellwire.paths`). With ``folder``, a descriptor, the
        image has the last name of ``path`` in that folder. Raises a StorageError.
        """
        check_blocks(size, block)
        flags = os.O_RDONLY if readonly else os.O_RDWR | (os.O_CREAT if size else 0)
        flags |= os.O_DIRECT if direct else 0
        try:
            with Place(path) if folder < 0 else Place.inside(folder, path) as place:
                fd = place.open(flags, 0o600, kinds=_KINDS)
        except OSError as error:
            hint = "; give size= to have it made" if error.errno == errno.ENOENT and not readonly else ""
            if direct and error.errno == errno.EINVAL:
                hint = "; its file system cannot pass the page cache by: leave direct out"
            raise StorageError(f"image {path}: {why(error)}{hint}") from error
        try:
            if lock:
                _lock(fd, path, readonly=readonly)
            disk = cls(fd, _measure(fd, path, size, readonly), readonly=readonly, direct=direct)
            disk._path = path
            if direct:
                _check_direct(disk, path, block)
            return disk
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def adopt(
        cls, fd: int, path: Path, *, readonly: bool = False, direct: bool = False, block: int = 512, lock: bool = True
    ) -> Disk:
        """Go on with an image that another process has opened at ``path``. The disk owns ``fd``. Raises a StorageError.

        Its lock is that process's, too.
        """
        try:
            if lock:
                _lock(fd, path, readonly=readonly)
            disk = cls(fd, os.lseek(fd, 0, os.SEEK_END), readonly=readonly, direct=direct)
            disk._path, disk.inherited = path, True
            return disk
        except BaseException:
            os.close(fd)
            raise

    @property
    def file(self) -> int:
        """A descriptor of the file that has the bytes, for another process."""
        return self.fd

    def resize(self, size: int, *, block: int = 512, shrink: bool = False) -> None:
        """Change the size to ``size`` bytes, in whole blocks of ``block``; 0 takes over the present size of the image.

        A StorageError if the size is not possible, or if the disk would get smaller without ``shrink``.
        """
        if size:
            self.check_resize(size, block=block, shrink=shrink)
            _resize(self.fd, size)
        self.size = self._found()

    def check_resize(self, size: int, *, block: int, shrink: bool) -> None:
        """Raise the StorageError that :meth:`resize` would raise, and change nothing."""
        check_blocks(size, block)
        found = self._found()
        if 0 < size < found and not shrink:
            raise StorageError(
                f"size={size} would cut the disk from {found} bytes and destroy what lies beyond; "
                "if that is meant, give shrink=yes before it"
            )

    def read(self, buffers: Buffers, offset: int) -> None:
        """Fill ``buffers`` with the bytes from ``offset`` on. Raises OSError."""
        for some, at, length in _portions(buffers, offset):
            got = self._get(some, at)
            while got < length:
                more = self._get(after(some, got), at + got)
                if more == 0:
                    raise OSError(errno.EIO, f"the image ends at {at + got:#x}: somebody has cut it short")
                got += more

    def try_read(self, buffers: Buffers, offset: int, length: int) -> bool:
        """:meth:`read` ``length`` bytes, if they are in memory. Else False, with any content in the buffers."""
        if self.at_once is None or len(buffers) > MOST_PIECES:
            return False
        try:
            return os.preadv(self.fd, buffers, offset, self.at_once) == length
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            self.at_once = None  # this kind of file does not support RWF_NOWAIT
            return False

    def write(self, buffers: Buffers, offset: int, *, durable: bool = False) -> None:
        """Write ``buffers`` from ``offset`` on; with ``durable`` onto the medium before it returns. Raises OSError."""
        flags = os.RWF_DSYNC if durable else 0
        try:
            for some, at, length in _portions(buffers, offset):
                done = self._put(some, at, flags)
                while done < length:
                    more = self._put(after(some, done), at + done, flags)
                    if more == 0:
                        raise OSError(errno.EIO, f"the image takes nothing at {at + done:#x}")
                    done += more
        except OSError as error:
            if durable and error.errno == errno.EIO:  # perhaps of an earlier write: the kernel reports it only once
                self.lost = errno.EIO
            raise

    def flush(self) -> None:
        """Put everything that was written so far onto the medium.

        After one failure every later flush fails too: the kernel reports lost writes once, and then forgets them.
        """
        if self.lost:
            raise OSError(self.lost, "an earlier flush has failed")
        if not self.readonly:
            try:
                os.fdatasync(self.fd)
            except OSError as error:
                self.lost = error.errno or errno.EIO
                raise

    def discard(self, offset: int, length: int) -> None:
        """Free the space of these bytes if the storage can. Later reads give zeros or the old bytes."""
        try:
            fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise

    def zero(self, offset: int, length: int, *, release: bool = False) -> None:
        """Make these bytes read as zeros. With ``release`` it frees their space, if that also gives zeros."""
        for mode in (PUNCH_HOLE, ZERO_RANGE) if release else (ZERO_RANGE, PUNCH_HOLE):
            try:
                return fallocate(self.fd, mode | KEEP_SIZE, offset, length)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
        zeroes = memoryview(_ZEROES)
        for at in range(0, length, len(zeroes)):
            self.write([zeroes[: length - at]], offset + at)
        return None

    def empty(self) -> None:
        """Make the whole disk zeros, on the medium, and free its space if the storage can."""
        self.zero(0, self.size, release=True)
        self.flush()

    def lock(self) -> None:
        """Lock the image, if it is not locked yet. A StorageError if another device has it."""
        if self.fd != -1:
            _lock(self.fd, self._path, readonly=self.readonly)

    def unlock(self) -> None:
        """Let another device have the image. It finds what was written here: in the page cache, or by NFS's locks."""
        if self.fd != -1:
            fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the descriptor, which also releases the lock. A second call does nothing."""
        if self.fd != -1:
            with contextlib.suppress(OSError):  # the caller can do nothing about it any more
                self.flush()
            os.close(self.fd)
            self.fd = -1

    def _found(self) -> int:
        """The present size in bytes: another process may have changed that of an image."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def _get(self, buffers: Buffers, offset: int) -> int:
        """One preadv. If the medium needs better aligned memory, it reads into a copy."""
        try:
            return os.preadv(self.fd, buffers, offset)
        except OSError as error:
            if not self.direct or error.errno != errno.EINVAL:
                raise
        with mmap.mmap(-1, sum(map(len, buffers))) as aside:
            got = os.preadv(self.fd, [aside], offset)
            for buffer in buffers:
                part = aside.read(len(buffer))
                buffer[: len(part)] = part
        return got

    def _put(self, buffers: Buffers, offset: int, flags: int) -> int:
        """One pwritev, with a copy as in :meth:`_get`."""
        try:
            return os.pwritev(self.fd, buffers, offset, flags)
        except OSError as error:
            if not self.direct or error.errno != errno.EINVAL:
                raise
        with mmap.mmap(-1, sum(map(len, buffers))) as aside:
            for buffer in buffers:
                aside.write(buffer)
            return os.pwritev(self.fd, [aside], offset, flags)


def _lock(fd: int, path: Path, *, readonly: bool) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError(f"image {path}: another device uses it") from None


def _measure(fd: int, path: Path, size: int, readonly: bool) -> int:
    """Give a new image ``size`` bytes. Returns the size of the image."""
    kind = os.fstat(fd).st_mode
    found = os.lseek(fd, 0, os.SEEK_END)
    if found == 0 and size and stat.S_ISREG(kind) and not readonly:
        _resize(fd, size)
        found = size
    if size and found != size:
        log.warning("image %s keeps its %d bytes: size=%d is for an image that is to be made", path, found, size)
    return found


def check_blocks(size: int, block: int) -> None:
    """Refuse a size that is no multiple of the block: most likely the user forgot a unit, as in 64M."""
    if size > 0 and size % block:
        raise StorageError(f"size={size}: expected a whole number of blocks of {block} bytes, as in size=64M")


def _resize(fd: int, size: int) -> None:
    try:
        os.ftruncate(fd, size)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else "out of range"
        raise StorageError(f"a disk of {size} bytes cannot be made of this: {why}") from error


def _check_direct(disk: Disk, path: Path, block: int) -> None:
    """Refuse blocks that are smaller than those of the medium: with O_DIRECT each access to one would fail later."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page) as view:
        try:
            os.preadv(disk.fd, [view[:block]], 0)
        except OSError as error:
            why = f"{error.strerror}; blocks of {block} bytes cannot be read with direct: give block_size=4096"
            raise StorageError(f"image {path}: {why}") from error


def _portions(buffers: Buffers, offset: int) -> list[tuple[Buffers, int, int]]:
    """Divide ``buffers`` into portions for one system call each, with the offset and length of each portion."""
    if len(buffers) <= MOST_PIECES:
        return [(buffers, offset, sum(map(len, buffers)))]
    lots = []
    for first in range(0, len(buffers), MOST_PIECES):
        some = buffers[first : first + MOST_PIECES]
        length = sum(map(len, some))
        lots.append((some, offset, length))
        offset += length
    return lots
