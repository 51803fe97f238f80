"""Which pages of this process's mappings have been written: Linux notes it in the page tables.

userfaultfd protects the pages against writing, in its asynchronous mode: the first write to a page lifts the protection
inside the kernel, and nobody is told. PAGEMAP_SCAN lists the pages that have lost it, and protects them again. So
every write through the mapping is seen, whoever makes it: Python, a system call that reads a file into the memory, or
the kernel's asynchronous I/O. It costs one page fault for each page and report, and nothing at all while it is off.

A system call that began before a report and writes after it may have looked up the page before: wait for such work,
then ask.

Source: Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst of Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from vfio_user.errors import VfioUserError

PAGE = 4096
_USERFAULTFD = 323  # the number of the system call on x86-64
_USER_MODE_ONLY = 1
_API_VERSION = 0xAA
_FEATURES = 1 << 15 | 1 << 13 | 1 << 12  # WP_ASYNC, WP_UNPOPULATED and WP_HUGETLBFS_SHMEM
_API, _REGISTER, _UNREGISTER, _WRITEPROTECT = 0xC018AA3F, 0xC020AA00, 0x8010AA01, 0xC018AA06
_SCAN = 0xC0606610
IOCTLS = (_API, _REGISTER, _UNREGISTER, _WRITEPROTECT, _SCAN)
"""What a process needs of ioctl(2)."""
_THREE, _FOUR, _TWO = struct.Struct("QQQ"), struct.Struct("QQQQ"), struct.Struct("QQ")
_SCAN_ARGUMENT = struct.Struct("12Q")
_REGION = struct.Struct("QQQ")
_REGIONS = 1024  # that one call returns at most
_MATCHING, _WRITTEN = 1 | 2, 1 << 1  # PM_SCAN_WP_MATCHING and PM_SCAN_CHECK_WPASYNC; PAGE_IS_WRITTEN
_syscall = ctypes.CDLL(None, use_errno=True).syscall


_ready: list[int] = []
"""The descriptors that :func:`get_ready` has opened."""


def get_ready() -> None:
    """Open both descriptors now, for a process that later may not. Nothing happens if the kernel lacks them."""
    if not _ready:
        with contextlib.suppress(OSError):
            _ready.extend(_open())


def _open() -> tuple[int, int]:
    """A userfaultfd in its asynchronous mode, and this process's pagemap. Raises OSError."""
    faults = int(_syscall(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY))
    if faults < 0:
        raise OSError(ctypes.get_errno(), f"userfaultfd: {os.strerror(ctypes.get_errno())}")
    try:
        fcntl.ioctl(faults, _API, _THREE.pack(_API_VERSION, _FEATURES, 0))
        return faults, os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        os.close(faults)
        raise


class WrittenPages:
    """Watches mappings of this process. It owns two descriptors, until :meth:`close`.

    Raises VfioUserError (ENOTSUP) if the kernel cannot do it: Linux can since 6.7, for programs that may call
    userfaultfd(2) and open /proc/self/pagemap, or that have called :func:`get_ready` when they might.
    """

    def __init__(self) -> None:
        self._watched: set[tuple[int, int]] = set()
        try:
            self._faults, self._pagemap = map(os.dup, _ready) if _ready else _open()
        except OSError as error:
            why = f"this kernel does not tell which pages were written (Linux does since 6.7): {error}"
            raise VfioUserError(why, errno.ENOTSUP) from None
        self._regions = ctypes.create_string_buffer(_REGION.size * _REGIONS)

    def protect(self, address: int, length: int) -> bool:
        """Watch ``length`` bytes at ``address``, both multiples of pages. False if such memory cannot be watched."""
        try:
            fcntl.ioctl(self._faults, _REGISTER, _FOUR.pack(address, length, 2, 0))
            fcntl.ioctl(self._faults, _WRITEPROTECT, _THREE.pack(address, length, 1))
        except OSError:
            return False
        self._watched.add((address, length))
        return True

    def release(self, address: int, length: int) -> None:
        """Watch these bytes no more."""
        self._watched.discard((address, length))
        with contextlib.suppress(OSError):  # they may have been unmapped
            fcntl.ioctl(self._faults, _UNREGISTER, _TWO.pack(address, length))

    def take(self, address: int, length: int) -> Iterator[tuple[int, int]]:
        """The addresses ``[start, end)`` that were written since the last call for them, in order.

        They are forgotten. Pages are whole. Raises OSError if the bytes are not watched.
        """
        start, end = address // PAGE * PAGE, -(-(address + length) // PAGE) * PAGE
        vector = ctypes.addressof(self._regions)
        while start < end:
            argument = bytearray(
                _SCAN_ARGUMENT.pack(
                    _SCAN_ARGUMENT.size, _MATCHING, start, end, 0, vector, _REGIONS, 0, 0, _WRITTEN, 0, _WRITTEN
                )
            )
            count = fcntl.ioctl(self._pagemap, _SCAN, argument)
            start = int(_SCAN_ARGUMENT.unpack(argument)[4])
            for first, last, _ in list(_REGION.iter_unpack(self._regions.raw[: _REGION.size * count])):
                yield first, last

    def close(self) -> None:
        """Watch nothing any more, and close both descriptors."""
        for each in list(self._watched):
            self.release(*each)
        for fd in (self._faults, self._pagemap):
            os.close(fd)
