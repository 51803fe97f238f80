"""fallocate(2), which Python's ``os`` has only in its POSIX form."""

from __future__ import annotations

import ctypes
import errno
import os

KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.restype = ctypes.c_int
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change the space of ``[offset, offset + length)`` as ``mode`` says; an OSError where that cannot be done."""
    while _libc.fallocate(fd, mode, offset, length):
        error = ctypes.get_errno()
        if error != errno.EINTR:
            raise OSError(error, f"fallocate(mode={mode:#x}) of {length} bytes at {offset:#x}: {os.strerror(error)}")
