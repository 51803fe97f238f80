"""The few system calls that Python's ``os`` does not have, or not as they are needed here; each is declared once."""

from __future__ import annotations

import ctypes
import errno
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

CLONE_NEWNS = 0x0002_0000
MS_SLAVE, MS_REC = 1 << 19, 1 << 14

# io_submit(2) and its like have no function in libc: x86-64's numbers.
_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = 206, 207, 208, 209
_PREADV, _PWRITEV, _RESFD = 7, 8, 1
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_syscall = ctypes.PyDLL(None, use_errno=True).syscall  # keeps the interpreter's lock: what it is for waits for nothing
_submit = ctypes.CDLL(None, use_errno=True).syscall  # gives it up: a write waits where the file system is frozen
_syscall.restype = _submit.restype = ctypes.c_long
_get_buffer, _release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Change the space of ``[offset, offset + length)`` as ``mode`` says; an OSError where that cannot be done."""
    while _libc.fallocate(fd, mode, offset, length):
        error = ctypes.get_errno()
        if error != errno.EINTR:
            raise OSError(error, f"fallocate(mode={mode:#x}) of {length} bytes at {offset:#x}: {os.strerror(error)}")


def unshare(flags: int) -> None:
    """Give this thread namespaces of its own (unshare(2))."""
    _check(_libc.unshare(flags), "unshare")


def mount(kind: str | None, target: str, flags: int = 0) -> None:
    """Mount a file system of ``kind`` at ``target``, or with None change how the one there is propagated (mount(2))."""
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
    """struct io_event."""

    _fields_ = [
        ("data", ctypes.c_uint64),
        ("iocb", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    ]


class _Buffer(ctypes.Structure):
    """Py_buffer of Python's C API: the way to the address of a view that may not be written."""

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
"""Addresses and lengths, as struct iovec has them."""


class AioContext:
    """What io_setup(2) makes: room for ``most`` transfers at once, told apart by a slot each."""

    def __init__(self, most: int) -> None:
        self._context = ctypes.c_ulong(0)
        if _syscall(_SETUP, most, ctypes.byref(self._context)):
            raise OSError(ctypes.get_errno(), "io_setup")
        self._most = most
        self._iocbs = (_Iocb * most)()
        self._events = (_Event * most)()

    def submit(self, slot: int, fd: int, vectors: IoVectors, offset: int, *, write: bool, told: int) -> bool:
        """Begin a transfer, at whose end the eventfd ``told`` is written; False where the kernel does not take it.

        The vectors, and what they point to, are the kernel's until then.
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
        """Slots and results of those that have ended by now."""
        events, most = self._events, ctypes.c_long(self._most)
        count = _syscall(_GETEVENTS, self._context, ctypes.c_long(0), most, ctypes.byref(events), None)
        return [(event.data, event.result) for event in events[: max(0, count)]]

    def close(self) -> None:
        """Give it back; what is under way is waited for."""
        _syscall(_DESTROY, self._context)


def io_vectors(views: Sequence[memoryview | bytearray]) -> IoVectors:
    """Where ``views`` lie. They stay there for as long as they are kept."""
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
