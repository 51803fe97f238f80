"""The pool of a worker: threads that do its jobs."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from queue import Empty, SimpleQueue

from bellwire.model.jobs import Done, Job
from bellwire.serve.loop import Loop


class Threads:
    """The pool of a worker: ``count`` threads, started with the first job, on ``loop``."""

    def __init__(self, loop: Loop, count: int, done: Done) -> None:
        self._loop = loop
        self._count = count
        self._done = done
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._finished: deque[Job] = deque()
        self._told = False
        self._outstanding = 0
        self._threads: list[threading.Thread] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        loop.watch(self._wake, self._collect)

    def submit(self, job: Job) -> None:
        """Queue it; an idle thread takes it at once."""
        self._outstanding += 1
        if len(self._threads) < min(self._count, self._outstanding):
            thread = threading.Thread(target=self._work, name=f"pool-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)

    def finish(self) -> None:
        """Wait for every job that has been submitted."""
        ended = self._await()
        if ended:
            self._outstanding = len(ended)
            self._finished.extend(ended)
            self._told = True
            os.eventfd_write(self._wake, 1)

    def settle(self) -> None:
        """Wait for the jobs that a thread has taken: at most one a thread."""
        try:
            while True:
                self._jobs.get_nowait()
                self._outstanding -= 1
        except Empty:
            pass
        self._await()

    def close(self) -> None:
        """End the threads; a second call does nothing."""
        if self._wake < 0:
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
        jobs, finished = self._jobs, self._finished
        while (job := jobs.get()) is not None:
            job.run()
            finished.append(job)
            if not self._told:  # cleared before the list is emptied, so that no result is left behind unannounced
                self._told = True
                os.eventfd_write(self._wake, 1)

    def _await(self) -> list[Job]:
        """Sleep until no job is left; all that have ended, and have not been told of."""
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
            return []  # settle() has been here, after the loop saw the wake-up and before this call
        self._told = False
        finished = self._finished
        taken = [finished.popleft() for _ in range(len(finished))]
        self._outstanding -= len(taken)
        return taken

    def _collect(self) -> None:
        taken = self._take()
        if taken:
            self._done(taken)
