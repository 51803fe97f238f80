"""Transfers that the kernel carries out by itself: io_submit(2), for files opened with O_DIRECT.

A thread for each transfer would fight the others and the device for the interpreter's lock. Here the device's own
thread hands transfers over and takes results in; what the kernel will not do without waiting, or could not do whole,
goes to the threads after all, which do it anew and know what to say of errors.
"""

from __future__ import annotations

import ctypes
import os
import select
from collections.abc import Callable, Sequence

from bellwire.device import PciDevice
from bellwire.model.jobs import Done, Job, Pool
from bellwire.storage.disk import Disk

MOST = 256
"""Transfers under way at once."""
_SETUP, _DESTROY, _GETEVENTS, _SUBMIT = 206, 207, 208, 209  # x86-64's numbers
_PREADV, _PWRITEV, _RESFD = 7, 8, 1
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


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


_syscall = ctypes.PyDLL(None, use_errno=True).syscall  # keeps the interpreter's lock: what it is for waits for nothing
_submit = ctypes.CDLL(None, use_errno=True).syscall  # gives it up: a write waits where the file system is frozen
_syscall.restype = _submit.restype = ctypes.c_long
_get_buffer, _release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
_get_buffer.argtypes = [ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int]
_release.argtypes = [ctypes.POINTER(_Buffer)]


class Transfer(Job):
    """A read or write of ``views`` at ``offset`` of a disk: a job like others, which the kernel may do instead."""

    __slots__ = ("disk", "length", "offset", "views", "write")

    def __init__(self, disk: Disk, views: Sequence[memoryview | bytearray], offset: int, *, write: bool) -> None:
        super().__init__(disk.write if write else disk.read, views, offset)
        self.disk = disk
        self.views = views
        self.offset = offset
        self.length = sum(map(len, views))
        self.write = write


class DirectPool:
    """A pool whose transfers on O_DIRECT disks go to the kernel, and all else to ``threads``."""

    def __init__(self, device: PciDevice, threads: Pool, done: Done) -> None:
        self._threads = threads
        self._done = done
        self._context = ctypes.c_ulong(0)
        if _syscall(_SETUP, MOST, ctypes.byref(self._context)):
            raise OSError(ctypes.get_errno(), "io_setup")
        self._iocbs = (_Iocb * MOST)()
        self._events = (_Event * MOST)()
        self._free = list(range(MOST))
        self._running: dict[int, tuple[Transfer, object]] = {}  # with what the kernel still looks at
        self._finished: list[Job] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._unwatch: Callable[[], None] = lambda: device.unwatch(self._wake)
        device.watch(self._wake, self._collect)

    def submit(self, job: Job) -> None:
        """Begin it, one way or the other."""
        if not (isinstance(job, Transfer) and job.disk.direct and self._begin(job)):
            self._threads.submit(job)

    def finish(self) -> None:
        """Wait for all, here and then in the threads."""
        while self._running:
            self._sleep()
            self._take()
        self._threads.finish()
        if self._finished:
            os.eventfd_write(self._wake, 1)

    def settle(self) -> None:
        """Wait for all that is under way, and forget it."""
        self._threads.settle()
        while self._running:
            self._sleep()
            for slot, _ in self._ended():
                self._forget(slot)
        self._finished.clear()
        self._drain()

    def close(self) -> None:
        """Settle, and give everything back; a second call does nothing."""
        if self._wake < 0:
            return
        self.settle()
        self._threads.close()
        _syscall(_DESTROY, self._context)
        self._unwatch()
        os.close(self._wake)
        self._wake = -1

    def _begin(self, job: Transfer) -> bool:
        """Hand it to the kernel; False where that will not take it now."""
        if not self._free:
            return False
        slot = self._free.pop()
        vectors = (ctypes.c_uint64 * (2 * len(job.views)))()
        for number, view in enumerate(job.views):
            vectors[2 * number], vectors[2 * number + 1] = _address(view), len(view)
        iocb = self._iocbs[slot]
        iocb.data, iocb.rw_flags = slot, _NOWAIT
        iocb.opcode, iocb.fd = _PWRITEV if job.write else _PREADV, job.disk.fd
        iocb.buffer, iocb.bytes, iocb.offset = ctypes.addressof(vectors), len(job.views), job.offset
        iocb.flags, iocb.eventfd = _RESFD, self._wake
        one = ctypes.c_void_p(ctypes.addressof(iocb))
        if _submit(_SUBMIT, self._context, ctypes.c_long(1), ctypes.byref(one)) != 1:
            self._free.append(slot)
            return False
        self._running[slot] = job, vectors
        return True

    def _collect(self) -> None:
        """Some have ended."""
        self._drain()
        self._take()
        jobs, self._finished = self._finished, []
        if jobs:
            self._done(jobs)

    def _sleep(self) -> None:
        """Until some may have ended. A disk may take for ever: other threads have the interpreter's lock meanwhile."""
        waiter = select.poll()
        waiter.register(self._wake, select.POLLIN)
        waiter.poll()
        self._drain()

    def _take(self) -> None:
        for slot, result in self._ended():
            job = self._forget(slot)
            if result == job.length:
                self._finished.append(job)
            else:
                self._threads.submit(job)

    def _ended(self) -> list[tuple[int, int]]:
        """Slots and results of those that have ended by now; the kernel puts them down before it writes the eventfd."""
        events = self._events
        count = _syscall(_GETEVENTS, self._context, ctypes.c_long(0), ctypes.c_long(MOST), ctypes.byref(events), None)
        return [(event.data, event.result) for event in events[: max(0, count)]]

    def _forget(self, slot: int) -> Transfer:
        self._free.append(slot)
        return self._running.pop(slot)[0]

    def _drain(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return


def direct_pool(device: PciDevice, threads: Pool, done: Done) -> Pool:
    """A :class:`DirectPool`, or just ``threads`` where the kernel has no such thing to give."""
    try:
        pool = DirectPool(device, threads, done)
    except OSError:
        return threads
    device.join_pool(pool)
    return pool


def _address(view: memoryview | bytearray) -> int:
    """Where it lies. It stays there for as long as the view is kept."""
    buffer = _Buffer()
    _get_buffer(view, ctypes.byref(buffer), 0)
    address = buffer.address or 0
    _release(ctypes.byref(buffer))
    return address
