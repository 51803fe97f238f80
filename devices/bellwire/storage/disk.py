"""A disk's bytes, read and written at offsets."""

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
from bellwire.pieces import MOST_PIECES, after

Buffers = Sequence[memoryview | bytearray]

LARGEST = (1 << 63) - 1  # bytes: off_t
_ZEROES = bytes(1 << 20)
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
log = logging.getLogger("bellwire.storage")
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class StorageError(BellwireError):
    """An image that cannot be opened, or is not what it was said to be."""


class Disk:
    """``size`` bytes behind ``fd``, which it owns. Offsets and lengths are the caller's to check.

    :meth:`read`, :meth:`write`, :meth:`flush`, :meth:`discard` and :meth:`zero` may wait for the medium and may
    be called from any thread; they raise OSError. :meth:`try_read` never waits.
    """

    def __init__(
        self, fd: int, size: int, *, readonly: bool = False, instant: bool = False, direct: bool = False
    ) -> None:
        self.fd = fd
        self.size = size
        self.readonly = readonly
        self.instant = instant
        """Whether nothing here ever waits: the bytes are memory."""
        self.direct = direct
        """Whether the page cache is passed by (O_DIRECT)."""
        self.at_once: int | None = 0 if instant else _NOWAIT
        """Flags for a preadv that never waits; None where there is no such thing."""
        if direct or not (instant or _NOWAIT):
            self.at_once = None
        self._lost: OSError | None = None

    @classmethod
    def memory(cls, size: int, *, block: int = 512) -> Disk:
        """``size`` bytes, in whole blocks, that are forgotten at the end; the memory is taken as it is written."""
        disk = cls(os.memfd_create("bellwire-disk", os.MFD_CLOEXEC), 0, instant=True)
        try:
            disk.resize(size, block=block)
        except StorageError:
            disk.close()
            raise
        return disk

    @classmethod
    def open(cls, path: Path, *, readonly: bool = False, size: int = 0, direct: bool = False, block: int = 512) -> Disk:
        """A raw file or a block device, in which every access is of whole blocks.

        Where there is no file, or an empty one, a sparse file of ``size`` bytes is made. An image that is there keeps
        its own size, and a warning says so if ``size`` is another. It is locked (flock(2)), so that no two of our
        devices write one image.
        """
        check_blocks(size, block)
        flags = os.O_CLOEXEC | (os.O_RDONLY if readonly else os.O_RDWR | (os.O_CREAT if size else 0))
        flags |= os.O_DIRECT if direct else 0
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            hint = "; give size= to have it made" if error.errno == errno.ENOENT and not readonly else ""
            if direct and error.errno == errno.EINVAL:
                hint = "; its file system cannot pass the page cache by: leave direct out"
            raise StorageError(f"image {path}: {error.strerror}{hint}") from error
        try:
            disk = cls(fd, _measure(fd, path, size, readonly), readonly=readonly, direct=direct)
            if direct:
                _check_direct(disk, path, block)
            return disk
        except BaseException:
            os.close(fd)
            raise

    def resize(self, size: int, *, block: int = 512, shrink: bool = False) -> None:
        """Give it ``size`` bytes, in whole blocks of ``block``, or with 0 take the size that it has by now.

        A StorageError where that cannot be, and where it would lose bytes without ``shrink``.
        """
        if size:
            self.check_resize(size, block=block, shrink=shrink)
            _resize(self.fd, size)
        self.size = os.lseek(self.fd, 0, os.SEEK_END)

    def check_resize(self, size: int, *, block: int, shrink: bool) -> None:
        """Refuse what :meth:`resize` would."""
        check_blocks(size, block)
        found = os.lseek(self.fd, 0, os.SEEK_END)
        if 0 < size < found and not shrink:
            raise StorageError(
                f"size={size} would cut the disk from {found} bytes and destroy what lies beyond; "
                "if that is meant, give shrink=yes before it"
            )

    def read(self, buffers: Buffers, offset: int) -> None:
        """Fill ``buffers`` from ``offset`` on."""
        for some, at, length in _portions(buffers, offset):
            got = self._get(some, at)
            while got < length:
                more = self._get(after(some, got), at + got)
                if more == 0:
                    raise OSError(errno.EIO, f"the image ends at {at + got:#x}: somebody has cut it short")
                got += more

    def try_read(self, buffers: Buffers, offset: int, length: int) -> bool:
        """:meth:`read` ``length`` bytes, if they are in memory; False, with the buffers in any state, if not."""
        if self.at_once is None or len(buffers) > MOST_PIECES:
            return False
        try:
            return os.preadv(self.fd, buffers, offset, self.at_once) == length
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            self.at_once = None  # this kind of file cannot tell
            return False

    def write(self, buffers: Buffers, offset: int, *, durable: bool = False) -> None:
        """Write ``buffers`` from ``offset`` on; ``durable``: onto the medium before it returns."""
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
            if durable and error.errno == errno.EIO:  # which may be an earlier write's, told of here and never again
                self._lost = error
            raise

    def flush(self) -> None:
        """Everything written so far onto the medium.

        Once that has failed it always does: the kernel tells of writes that it has lost once, and then forgets them.
        """
        if self._lost:
            raise OSError(self._lost.errno, "an earlier flush has failed") from self._lost
        if not self.readonly:
            try:
                os.fdatasync(self.fd)
            except OSError as error:
                self._lost = error
                raise

    def discard(self, offset: int, length: int) -> None:
        """Give the space back, where that can be done; what is read there afterwards is zeroes or the old bytes."""
        try:
            fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise

    def zero(self, offset: int, length: int, *, release: bool = False) -> None:
        """Make it read as zeroes; ``release``: give the space back if that does it too."""
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
        """Make all of it zeroes, on the medium, and give the space back where that can be done."""
        self.zero(0, self.size, release=True)
        self.flush()

    def close(self) -> None:
        """Close the descriptor, and with it the lock; a second call does nothing."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):  # there is nobody left to tell
                self.flush()
            os.close(self.fd)
            self.fd = -1

    def _get(self, buffers: Buffers, offset: int) -> int:
        """One preadv; by a copy where the medium wants memory that is better aligned."""
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
        """The same for pwritev."""
        try:
            return os.pwritev(self.fd, buffers, offset, flags)
        except OSError as error:
            if not self.direct or error.errno != errno.EINVAL:
                raise
        with mmap.mmap(-1, sum(map(len, buffers))) as aside:
            for buffer in buffers:
                aside.write(buffer)
            return os.pwritev(self.fd, [aside], offset, flags)


def _measure(fd: int, path: Path, size: int, readonly: bool) -> int:
    """The image's size, once it is locked and, where it is new, made as large as asked for."""
    kind = os.fstat(fd).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
        raise StorageError(f"image {path}: neither a file nor a block device")
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StorageError(f"image {path}: another device uses it") from None
    found = os.lseek(fd, 0, os.SEEK_END)
    if found == 0 and size and stat.S_ISREG(kind) and not readonly:
        _resize(fd, size)
        found = size
    if size and found != size:
        log.warning("image %s keeps its %d bytes: size=%d is for an image that is to be made", path, found, size)
    return found


def check_blocks(size: int, block: int) -> None:
    """Refuse a disk that is no whole number of blocks: a unit has been forgotten, most likely."""
    if size > 0 and size % block:
        raise StorageError(f"size={size}: expected a whole number of blocks of {block} bytes, as in size=64M")


def _resize(fd: int, size: int) -> None:
    try:
        os.ftruncate(fd, size)
    except (OSError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else "out of range"
        raise StorageError(f"a disk of {size} bytes cannot be made of this: {why}") from error


def _check_direct(disk: Disk, path: Path, block: int) -> None:
    """A medium wants whole blocks of its own: too small ones of ours would fail one by one later."""
    with mmap.mmap(-1, mmap.PAGESIZE) as page, memoryview(page) as view:
        try:
            os.preadv(disk.fd, [view[:block]], 0)
        except OSError as error:
            why = f"{error.strerror}; blocks of {block} bytes cannot be read with direct: give block_size=4096"
            raise StorageError(f"image {path}: {why}") from error


def _portions(buffers: Buffers, offset: int) -> list[tuple[Buffers, int, int]]:
    """``buffers`` in lots that one system call can take, with the offset and length of each."""
    if len(buffers) <= MOST_PIECES:
        return [(buffers, offset, sum(map(len, buffers)))]
    lots = []
    for first in range(0, len(buffers), MOST_PIECES):
        some = buffers[first : first + MOST_PIECES]
        length = sum(map(len, some))
        lots.append((some, offset, length))
        offset += length
    return lots
