"""System calls that Python's ``os`` lacks, or offers in another form. Each is declared once, through ctypes."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Sequence

KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.restype = ctypes.c_int
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong,
]  # fmt: skip
_MAP_FIXED = 0x10
_MAP_FAILED = ctypes.c_void_p(-1).value

CLONE_NEWNS = 0x0002_0000
MS_SLAVE, MS_REC = 1 << 19, 1 << 14

# libc has no functions for io_submit(2) and its family. The numbers are those of x86-64.
_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = 206, 207, 208, 209
_PREADV, _PWRITEV, _RESFD = 7, 8, 1
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_syscall = ctypes.PyDLL(None, use_errno=True).syscall  # holds the interpreter's lock: these calls do not wait
_submit = ctypes.CDLL(None, use_errno=True).syscall  # releases the lock: a write waits while its file system is frozen
_syscall.restype = _submit.restype = ctypes.c_long
_get_buffer, _release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change the space of ``[offset, offset + length)`` in a file as ``mode`` says (fallocate(2)). Raises OSError."""
    while _libc.fallocate(fd, mode, offset, length):
        error = ctypes.get_errno()
        if error != errno.EINTR:
            raise OSError(error, f"fallocate(mode={mode:#x}) of {length} bytes at {offset:#x}: {os.strerror(error)}")


def map_over(view: memoryview, fd: int) -> None:
    """Lay the start of ``fd`` under ``view``, which is a whole mapping: views of it stay valid (mmap(2), MAP_FIXED).

    The caller has checked that the file is as long. Raises OSError.
    """
    place, protection = _address(view), mmap.PROT_READ | mmap.PROT_WRITE
    if _libc.mmap(place, len(view), protection, mmap.MAP_SHARED | _MAP_FIXED, fd, 0) in (None, _MAP_FAILED):
        raise OSError(ctypes.get_errno(), f"mmap of {len(view)} bytes: {os.strerror(ctypes.get_errno())}")


def unshare(flags: int) -> None:
    """Give this thread namespaces of its own, as ``flags`` say (unshare(2)). Raises OSError."""
    _check(_libc.unshare(flags), "unshare")


def mount(kind: str | None, target: str, flags: int = 0) -> None:
    """Mount a file system of ``kind`` at ``target``; None changes the propagation of the one there (mount(2))."""
    _check(_libc.mount(b"none", target.encode(), kind and kind.encode(), flags, None), f"mount {kind or target}")


class _Iocb(ctypes.Structure):
    """struct iocb of linux/aio_abi.h."""

    _fields_ = [
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_uint32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("eventfd", ctypes.c_uint32),
    ]


class _Event(ctypes.Structure):
    """struct io_event of linux/aio_abi.h."""

    _fields_ = [
        ("data", ctypes.c_uint64),
        ("iocb", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    ]


class _Buffer(ctypes.Structure):
    """Py_buffer of Python's C API. It gives the address of a view, even of a read-only one."""

    _fields_ = [
        ("address", ctypes.c_void_p),
        ("object", ctypes.c_void_p),
        ("length", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int]
_release.argtypes = [ctypes.POINTER(_Buffer)]

IoVectors = ctypes.Array[ctypes.c_uint64]
"""An array of struct iovec: pairs of address and length."""


class AioContext:
    """A context for asynchronous I/O (io_setup(2)). Up to ``most`` transfers run at once, each in a slot from 0 on."""

    def __init__(self, most: int) -> None:
        self._context = ctypes.c_ulong(0)
        if _syscall(_SETUP, most, ctypes.byref(self._context)):
            raise OSError(ctypes.get_errno(), "io_setup")
        self._most = most
        self._iocbs = (_Iocb * most)()
        self._events = (_Event * most)()

    def submit(self, slot: int, fd: int, vectors: IoVectors, offset: int, *, write: bool, told: int) -> bool:
        """Begin a transfer in ``slot``. At its end the kernel writes to the eventfd ``told``.

        False if the kernel refuses the transfer. The caller keeps ``vectors``, and the memory that they point to, until
        the transfer has ended.
        """
        iocb = self._iocbs[slot]
        iocb.data, iocb.rw_flags = slot, _NOWAIT
        iocb.opcode, iocb.fd = _PWRITEV if write else _PREADV, fd
        iocb.buffer, iocb.bytes, iocb.offset = ctypes.addressof(vectors), len(vectors) // 2, offset
        iocb.flags, iocb.eventfd = _RESFD, told
        one = ctypes.c_void_p(ctypes.addressof(iocb))
        taken: int = _submit(_SUBMIT, self._context, ctypes.c_long(1), ctypes.byref(one))
        return taken == 1

    def ended(self) -> list[tuple[int, int]]:
        """The slots and results of the transfers that have ended. A result is a number of bytes, or minus an errno."""
        events, most = self._events, ctypes.c_long(self._most)
        count = _syscall(_GETEVENTS, self._context, ctypes.c_long(0), most, ctypes.byref(events), None)
        return [(event.data, event.result) for event in events[: max(0, count)]]

    def close(self) -> None:
        """Wait for all transfers, and free the context (io_destroy(2))."""
        _syscall(_DESTROY, self._context)


def io_vectors(views: Sequence[memoryview | bytearray]) -> IoVectors:
    """The addresses and lengths of ``views``. They are valid as long as the caller keeps the views."""
    vectors = (ctypes.c_uint64 * (2 * len(views)))()
    for number, view in enumerate(views):
        vectors[2 * number], vectors[2 * number + 1] = _address(view), len(view)
    return vectors


def _address(view: memoryview | bytearray) -> int:
    buffer = _Buffer()
    _get_buffer(view, ctypes.byref(buffer), 0)
    address = buffer.address or 0
    _release(ctypes.byref(buffer))
    return address


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} ({what})")
