"""The thread pool of a worker."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from queue import SimpleQueue

from bellwire.model.jobs import Done, Job
from bellwire.serve.loop import Loop
from bellwire.serve.standstill import Standstill


class Threads:
    """A :class:`bellwire.model.jobs.Pool` of ``count`` threads, which start as jobs come.

    ``done`` runs on the thread of ``loop``, with the jobs that have finished.
    """

    def __init__(self, loop: Loop | Standstill, count: int, done: Done) -> None:
        self._loop = loop
        self._count = count
        self._done = done
        self._jobs: SimpleQueue[tuple[Job, ...] | None] = SimpleQueue()
        self._finished: deque[Job] = deque()
        self._told = False
        self._dropping = False
        self._outstanding = 0
        self._threads: list[threading.Thread] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.watch(self._wake, self._collect)

    def submit(self, *jobs: Job) -> None:
        """Queue ``jobs``; an idle thread takes them at once."""
        self._outstanding += len(jobs)
        if len(self._threads) < min(self._count, self._outstanding):
            thread = threading.Thread(target=self._work, name=f"pool-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(jobs)

    @property
    def busy(self) -> bool:
        """Whether there are jobs that ``done`` has not got yet."""
        return self._outstanding > 0

    def finish(self) -> bool:
        """Wait for all jobs that have been submitted. Returns whether ``done`` has still to get some, from the loop."""
        if not self._outstanding:
            return False
        ended = self._await()
        self._outstanding = len(ended)
        self._finished.extend(ended)
        self._told = True
        os.eventfd_write(self._wake, 1)
        return True

    def settle(self) -> None:
        """Drop queued jobs, and wait for those that a thread has begun: at most one for each thread."""
        self._dropping = True
        self._await()
        self._dropping = False

    def close(self) -> None:
        """Settle, then end the threads. A second call does nothing."""
        if self._wake == -1:
            return
        self.settle()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._loop.unwatch(self._wake)
        os.close(self._wake)
        self._wake = -1

    def _work(self) -> None:
        while (jobs := self._jobs.get()) is not None:
            for job in jobs:
                if not self._dropping:
                    job.run()
            self._finished.extend(jobs)
            if not self._told:  # the loop clears it first, then empties the list: no result is left behind
                self._told = True
                os.eventfd_write(self._wake, 1)

    def _await(self) -> list[Job]:
        """Sleep until no job is left. Returns the jobs that ``done`` has not got yet."""
        ended: list[Job] = []
        waiter = select.poll()
        waiter.register(self._wake, select.POLLIN)
        while self._outstanding:
            waiter.poll()
            ended += self._take()
        return ended

    def _take(self) -> list[Job]:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return []  # settle() has taken the results between the wake-up and this call
        self._told = False
        finished = self._finished
        taken = [finished.popleft() for _ in range(len(finished))]
        self._outstanding -= len(taken)
        return taken

    def _collect(self) -> None:
        taken = self._take()
        if taken:
            self._done(taken)
