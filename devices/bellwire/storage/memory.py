"""A disk in memory. It needs no system call to read or write: data is copied between mappings."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os

from bellwire.errors import StateError
from bellwire.storage.disk import Buffers, Disk, StorageError, check_blocks

_FLAGS = mmap.MAP_SHARED | 0x4000
"""0x4000 is MAP_NORESERVE: the kernel promises no memory for what is never written."""
_STEP = 16 << 20
"""Bytes that are freed at once: the interpreter's lock is held meanwhile."""
_LOOK = 1 << 20
_MOST_LOOKED = 1 << 30
"""A larger disk counts as written: to look for its content would take too long."""


class MemoryDisk(Disk):
    """A disk of ``size`` bytes of memory, in whole blocks. It uses memory for what is written, and for what is read.

    The memory is a file (memfd_create(2)), so that it can outlive this process. With ``file``, it is that of another
    process, and ``size`` is the file's; the disk owns the descriptor. A StorageError if there is no room for so many
    addresses.
    """

    def __init__(self, size: int, *, block: int = 512, file: int = -1) -> None:
        super().__init__(-1, 0, instant=True)
        self.inherited = file >= 0
        self._file = file if self.inherited else os.memfd_create("bellwire-disk", os.MFD_CLOEXEC)
        try:
            check_blocks(size, block)
            if not self.inherited:
                os.ftruncate(self._file, size)
            self._pages = mmap.mmap(self._file, size, flags=_FLAGS)
        except (OSError, ValueError, OverflowError) as error:
            os.close(self._file)
            raise _impossible(size, error) from error
        except StorageError:
            os.close(self._file)
            raise
        for advice in (mmap.MADV_NOHUGEPAGE, mmap.MADV_DONTDUMP):
            with contextlib.suppress(OSError):  # a kernel without huge pages does not know the first
                self._pages.madvise(advice)
        self.size = size
        self.view = memoryview(self._pages)

    @property
    def file(self) -> int:
        """The file that is the memory."""
        return self._file

    def resize(self, size: int, *, block: int = 512, shrink: bool = False) -> None:
        """Change the size as :meth:`Disk.resize` does. 0 keeps it. No slice of :attr:`view` may exist."""
        self.check_resize(size, block=block, shrink=shrink)
        if not size:
            return
        if size < self.size:
            self.zero(size, self.size - size)  # or the rest of the last page would come back when the disk grows
        self.view.release()
        try:
            self._pages.resize(size)
            self.size = size
        except (OSError, ValueError, OverflowError) as error:
            os.ftruncate(self._file, self.size)
            raise _impossible(size, error) from error
        finally:
            self.view = memoryview(self._pages)

    def read(self, buffers: Buffers, offset: int) -> None:
        """Copy the bytes from ``offset`` on to ``buffers``."""
        view = self.view
        for buffer in buffers:
            end = offset + len(buffer)
            buffer[:] = view[offset:end]
            offset = end

    def try_read(self, buffers: Buffers, offset: int, length: int) -> bool:
        """:meth:`read`, which never waits."""
        self.read(buffers, offset)
        return True

    def write(self, buffers: Buffers, offset: int, *, durable: bool = False) -> None:
        """Copy ``buffers`` to the bytes from ``offset`` on."""
        view = self.view
        for buffer in buffers:
            end = offset + len(buffer)
            view[offset:end] = buffer
            offset = end

    def flush(self) -> None:
        """Do nothing: there is no medium behind the memory."""

    def discard(self, offset: int, length: int) -> None:
        """Free the memory of these bytes. Later reads give zeros."""
        self.zero(offset, length)

    def zero(self, offset: int, length: int, *, release: bool = False) -> None:
        """Make these bytes zeros. The memory of whole pages is freed."""
        end = offset + length
        first, last = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first >= last:
            self.view[offset:end] = bytes(length)
            return
        self.view[offset:first] = bytes(first - offset)
        self.view[last:end] = bytes(end - last)
        for at in range(first, last, _STEP):
            self._pages.madvise(mmap.MADV_REMOVE, at, min(_STEP, last - at))

    def check_snapshot(self) -> None:
        """Raise StateError unless all is zeros: a snapshot of the device has no memory of its disks."""
        zeros = bytes(_LOOK)
        looked = range(0, self.size, _LOOK)
        if self.size > _MOST_LOOKED or any(os.pread(self._file, _LOOK, at) != zeros[: self.size - at] for at in looked):
            raise StateError("the content of a disk in memory is not saved, and does not move: use an image (image=)")

    def lock(self) -> None:
        """Do nothing: no other device has the memory."""

    def unlock(self) -> None:
        """Do nothing, as :meth:`lock`."""

    def close(self) -> None:
        """Give the memory back, as soon as no slice of :attr:`view` is left. A second call does nothing."""
        self.view = memoryview(b"")
        self._pages = mmap.mmap(-1, 1)
        if self._file != -1:
            os.close(self._file)
            self._file = -1

    def _found(self) -> int:
        return self.size


def _impossible(size: int, error: Exception) -> StorageError:
    why = os.strerror(error.errno or errno.ENOMEM) if isinstance(error, OSError) else "out of range"
    return StorageError(f"a disk of {size} bytes cannot be made of memory: {why}")
