"""Mapping a client's file so that no view of it can ever become a wild pointer."""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from vfio_user.errors import VfioUserError

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_FAILED = ctypes.c_void_p(-1).value
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_USUAL_LIMIT = 65530


def _most_mappings(limit: Path = Path("/proc/sys/vm/max_map_count")) -> int:
    """7/8 of the kernel's limit. The file may be hidden (systemd's ProcSubset=pid): then assume the usual limit."""
    try:
        return int(limit.read_text()) // 8 * 7
    except OSError:
        return _USUAL_LIMIT // 8 * 7


MOST_MAPPINGS = _most_mappings()
"""The most mappings of files in a process. It is below the kernel's limit: at that limit, every allocation fails."""

MOST_PIECES = 256
"""The most pieces that :func:`join` puts side by side: 1 MiB, if each is a page."""

MOST_JOINED = 4096
"""Pieces of all such stretches together: each is a mapping beside those of files."""


class Mapping:
    """``size`` bytes of a file at ``offset``, mapped shared.

    A :meth:`view` stays addressable for as long as it lives. :meth:`detach` lays anonymous memory over the file's
    pages, and the addresses are unmapped when the last view is gone. Huge pages are mapped whole, even if only a part
    of one is asked for. The caller keeps ``fd``, and may close it. A core dump has none of these bytes: they are the
    guest's.

    Raises VfioUserError if the file is too small, or if the kernel cannot map it.
    """

    def __init__(self, fd: int, offset: int, size: int, *, write: bool) -> None:
        self.size = size
        self.write = write
        self._page = page = _check_file(fd, offset, size)
        base = offset - offset % page
        self._lead = offset - base
        self._length = -(-(size + self._lead) // page) * page
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
        self._address = _map(None, self._length, protection, mmap.MAP_SHARED, fd, base)
        self._pages: Pages | None = Pages.at(self._address, self._length)
        _keep_from_dumps(self._address, self._length)
        view = self._pages.view(self._lead, size)
        self._view = view if write else view.toreadonly()

    def view(self) -> memoryview:
        """The whole mapping; read-only unless it is mapped for writing."""
        return self._view

    @property
    def address(self) -> int:
        """The address of the first byte in this process, for system calls that take addresses."""
        return self._address + self._lead

    @property
    def whole(self) -> tuple[int, int]:
        """Address and size of all that is mapped, which may be more than was asked for: whole huge pages."""
        return self._address, self._length

    @property
    def joinable(self) -> bool:
        """Whether single pages can be mapped a second time: not of huge pages, nor at an offset within a page."""
        return self._page == mmap.PAGESIZE and self._lead == 0

    def detach(self) -> None:
        """Release the file at once. Views that still exist show zeros from now on."""
        self._view = memoryview(b"")
        if self._pages is None:
            return
        pages = weakref.ref(self._pages)
        self._pages = None
        if pages() is None:
            return  # no view was kept: it is unmapped already
        with suppress(VfioUserError):  # the kernel lacks memory for that: the last view will release the file
            _lay_over(self._address, self._length)


class Pages(ctypes.Array[ctypes.c_char]):
    """``size`` bytes from ``address`` on. They are unmapped when this object and all views of it are gone.

    A class of its own for each size would cost 8 µs. So this class has a length that no mapping reaches, and
    :meth:`view` gives the part that is mapped.
    """

    _type_ = ctypes.c_char
    _length_ = 1 << 56

    address: int
    size: int

    @classmethod
    def at(cls, address: int, size: int) -> Pages:
        """Take over the mapping of ``size`` bytes at ``address``."""
        pages = cls.from_address(address)
        pages.address, pages.size = address, size
        return pages

    def view(self, start: int, size: int) -> memoryview:
        """A writable view of ``size`` bytes, the first of them ``start`` bytes behind the address."""
        return memoryview(self).cast("B")[start : start + size]

    def __del__(self, unmap: Callable[[int, int], int] = _libc.munmap) -> None:
        unmap(self.address, self.size)


def join(pieces: Sequence[tuple[int, int]]) -> Pages:
    """Map pieces of mappings a second time, side by side. Each piece is the address of a page and a size in bytes.

    :meth:`Mapping.detach` does not change the result; :func:`blank` does. Raises VfioUserError for too many pieces, or
    if the kernel refuses.
    """
    if len(pieces) > MOST_PIECES:
        raise VfioUserError(f"{len(pieces)} pieces of memory to join, at most {MOST_PIECES} expected")
    length = sum(size for _, size in pieces)
    place = _map(None, length, _PROT_NONE, _ANONYMOUS, -1, 0)
    pages = Pages.at(place, length)
    for address, size in pieces:  # an old size of 0 copies a shared mapping (mremap(2))
        if _libc.mremap(address, 0, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, place) in (None, _FAILED):
            error = ctypes.get_errno()
            raise VfioUserError(f"mremap of {size} bytes: {os.strerror(error)}", error)
        place += size
    _keep_from_dumps(pages.address, length)
    return pages


def blank(pages: Pages) -> None:
    """Release the memory behind ``pages``. They show zeros from now on."""
    with suppress(VfioUserError):  # as in Mapping.detach()
        _lay_over(pages.address, pages.size)


def _keep_from_dumps(address: int, length: int) -> None:
    """MADV_DONTDUMP (madvise(2)). Drivers map their own memory so that it is never dumped: EINVAL means that."""
    _libc.madvise(address, length, mmap.MADV_DONTDUMP)


def _lay_over(address: int, length: int) -> None:
    _map(address, length, mmap.PROT_READ | mmap.PROT_WRITE, _ANONYMOUS | _MAP_FIXED, -1, 0)


def _check_file(fd: int, offset: int, size: int) -> int:
    """The page size of a file. Refuses a range beyond its end: an access there would raise SIGBUS."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return mmap.PAGESIZE
    if offset + size > status.st_size:
        raise VfioUserError(f"the file has {status.st_size} bytes, too few for {size} at offset {offset:#x}")
    return status.st_blksize if status.st_blksize % mmap.PAGESIZE == 0 else mmap.PAGESIZE  # hugetlbfs: of its pages


def _map(address: int | None, length: int, protection: int, flags: int, fd: int, offset: int) -> int:
    result: int | None = _libc.mmap(address, length, protection, flags, fd, offset)
    if result is None or result == _FAILED:
        error = ctypes.get_errno()
        raise VfioUserError(f"mmap of {length} bytes: {os.strerror(error)}", error)
    return result
