"""Asynchronous disk transfers by the kernel: io_submit(2), for files that are opened with O_DIRECT.

Disk I/O without waiting
========================

The thread of a device must not wait for a disk: it could not answer the guest meanwhile. There are three ways to avoid
that:

* *At once.* Data in the page cache needs no waiting: preadv2(2) with RWF_NOWAIT reads it, or fails with EAGAIN if it
  would have to wait. This way is the fastest, since no other thread is involved
  (:class:`bellwire.storage.disk.Disk`).
* *Threads* (:mod:`bellwire.serve.threads`). They can do everything. But each job goes through a queue and back, and the
  threads compete with the device for the interpreter's lock. At a queue depth of 32, a 4 KiB read through threads took
  the device 58 µs of CPU time.
* *io_submit*, in this module. The device's own thread hands a transfer to the kernel, and collects the result later.
  The same read took 32 µs. Linux does this for O_DIRECT only: with the page cache, io_submit itself waits.

io_uring was tried too, through the Python binding that is maintained. That binding takes only ``bytearray``s, so all
data would have to be copied to guest memory. It was about as fast as io_submit (docs/devices.md has the figures).

The kernel reports the end of a transfer by an eventfd (IOCB_FLAG_RESFD), which the worker's loop watches like any other
descriptor. Results that gather while the loop is busy arrive in one wake-up, and the guest gets one interrupt for them.
The kernel stores a result before it writes to the eventfd. So the pool reads the eventfd first and asks for results
next, and misses none.

RWF_NOWAIT is set here too. It makes the kernel refuse a transfer that it cannot begin without waiting, for a full queue
of the block layer or a lock of the file system. A transfer that is refused, cut short or failed goes to the threads,
which do it again. They also handle its errors, so one place alone reports a bad disk to the guest. A write to a frozen
file system waits in spite of RWF_NOWAIT, so the interpreter's lock is released while a transfer is submitted. The call
that asks for results never waits, and keeps the lock.

The kernel reads and writes guest memory, or the buffer of a view, while Python code runs. The pool keeps the views of a
transfer, and a view keeps its memory mapped. Before a client unmaps memory, :meth:`DirectPool.finish` waits for all
transfers.
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
"""The largest number of transfers at once."""


class Transfer(Job):
    """A job that reads or writes ``views`` at ``offset`` of a disk. A thread or the kernel carries it out."""

    __slots__ = ("disk", "length", "offset", "views", "write")

    def __init__(self, disk: Disk, views: Sequence[memoryview | bytearray], offset: int, *, write: bool) -> None:
        super().__init__(disk.write if write else disk.read, views, offset)
        self.disk = disk
        self.views = views
        self.offset = offset
        self.length = sum(map(len, views))
        self.write = write


class DirectPool:
    """A pool that hands transfers on O_DIRECT disks to the kernel, and all other jobs to ``threads``."""

    def __init__(self, device: PciDevice, threads: Pool, done: Done) -> None:
        self._threads = threads
        self._done = done
        self._kernel = AioContext(MOST)
        self._free = list(range(MOST))
        self._running: dict[int, tuple[Transfer, object]] = {}  # with the vectors, which the kernel still uses
        self._finished: list[Job] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._unwatch: Callable[[], None] = lambda: device.unwatch(self._wake)
        device.watch(self._wake, self._collect)

    def submit(self, *jobs: Job) -> None:
        """Start ``jobs``: in the kernel if possible, else on a thread each."""
        for job in jobs:
            if not (isinstance(job, Transfer) and job.disk.direct and self._begin(job)):
                self._threads.submit(job)

    @property
    def busy(self) -> bool:
        """Whether there are jobs that ``done`` has not got yet."""
        return bool(self._running or self._finished) or self._threads.busy

    def finish(self) -> bool:
        """Wait for all transfers in the kernel, then for all jobs on threads. Returns whether there are results."""
        while self._running:
            self._sleep()
            self._take()
        if self._finished:
            os.eventfd_write(self._wake, 1)
        return self._threads.finish() or bool(self._finished)

    def settle(self) -> None:
        """Wait for all transfers that have begun, and forget their results."""
        self._threads.settle()
        while self._running:
            self._sleep()
            for slot, _ in self._kernel.ended():
                self._forget(slot)
        self._finished.clear()
        self._drain()

    def close(self) -> None:
        """Settle, then free the context and end the threads. A second call does nothing."""
        if self._wake == -1:
            return
        self.settle()
        self._threads.close()
        self._kernel.close()
        self._unwatch()
        os.close(self._wake)
        self._wake = -1

    def _begin(self, job: Transfer) -> bool:
        """Hand ``job`` to the kernel. False if the kernel refuses it now."""
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
        """Collect the transfers that have ended. The loop calls it when the eventfd can be read."""
        self._drain()
        self._take()
        jobs, self._finished = self._finished, []
        if jobs:
            self._done(jobs)

    def _sleep(self) -> None:
        """Sleep until a transfer may have ended. Other threads get the interpreter's lock meanwhile."""
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
    """A :class:`DirectPool`, or ``threads`` alone if the kernel gives no context for asynchronous I/O."""
    try:
        pool = DirectPool(device, threads, done)
    except OSError:
        return threads
    device.join_pool(pool)
    return pool
