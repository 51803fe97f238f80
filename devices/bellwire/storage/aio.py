"""Transfers that the kernel carries out by itself: io_submit(2), for files opened with O_DIRECT.

Disk I/O without waiting
========================

A device's thread may not wait for a disk: nobody would hear the guest meanwhile. There are three ways not to:

* *On the spot.* What lies in the page cache is there at once: preadv2(2) with RWF_NOWAIT reads it or says that it
  would wait. That is the quickest, since nothing is handed over (:class:`bellwire.storage.disk.Disk`).
* *Threads* (:mod:`bellwire.serve.threads`). They can do everything, but each job goes through a queue and back, and
  Python's threads fight each other and the device for the interpreter's lock: at depth 32, a 4 KiB read through
  threads took the device 58 µs of CPU time.
* *io_submit*, here. The device's own thread hands a transfer to the kernel and takes the result in later, which took
  32 µs for the same read. Linux does so for O_DIRECT only: with the page cache between, io_submit itself waits.

io_uring was tried too, by the binding that is kept up: it takes only ``bytearray``s, so that everything would have to
be copied into guest memory, and was about as quick (docs/devices.md has the figures).

How a transfer ends is told by an eventfd (IOCB_FLAG_RESFD), which hangs in the worker's loop as any descriptor does.
So results that pile up while the loop is busy come in one wake-up, and the guest gets one interrupt for them. The
kernel writes results down before it writes the eventfd: to drain the eventfd first and ask for results next misses
none.

RWF_NOWAIT again has the kernel refuse what it could not begin without waiting: a full queue of the block layer, a
file system's lock. What is refused, cut short or failed goes to the threads after all, which do it anew and know what
to say of errors: there is one place that tells the guest of a bad disk. Transfers are handed over with the
interpreter's lock given up, since a write to a file system that is frozen waits in spite of all flags; what only asks
for results keeps the lock.

The kernel reads and writes the guest's memory, or the buffer of a view, while Python goes on. A view that the pool
keeps keeps its memory mapped, and before a client takes its memory back, all that is under way is waited for
(:meth:`finish`).
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Sequence

from bellwire.device import PciDevice
from bellwire.linux import AioContext, io_vectors
from bellwire.model.jobs import Done, Job, Pool
from bellwire.storage.disk import Disk

MOST = 256
"""Transfers under way at once."""


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
        self._kernel = AioContext(MOST)
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
            for slot, _ in self._kernel.ended():
                self._forget(slot)
        self._finished.clear()
        self._drain()

    def close(self) -> None:
        """Settle, and give everything back; a second call does nothing."""
        if self._wake < 0:
            return
        self.settle()
        self._threads.close()
        self._kernel.close()
        self._unwatch()
        os.close(self._wake)
        self._wake = -1

    def _begin(self, job: Transfer) -> bool:
        """Hand it to the kernel; False where that will not take it now."""
        if not self._free:
            return False
        slot = self._free.pop()
        vectors = io_vectors(job.views)
        if not self._kernel.submit(slot, job.disk.fd, vectors, job.offset, write=job.write, told=self._wake):
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
        for slot, result in self._kernel.ended():
            job = self._forget(slot)
            if result == job.length:
                self._finished.append(job)
            else:
                self._threads.submit(job)

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
