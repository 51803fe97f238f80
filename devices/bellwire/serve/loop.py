"""The worker's event loop: file descriptors, timers, and results of other threads."""

from __future__ import annotations

import heapq
import itertools
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from bellwire.serve.busy_poll import BusyPoll
from vfio_user import Ready

THREADS = 4
FEW_TIMERS = 256
LONGEST_WAIT = 3600.0  # seconds: epoll counts milliseconds in an int, and a timer may be years away
_TIMER = (-1, 0)  # added to the ready fds when a timer is due, so that the list differs from that of a message alone
Callback = Callable[[], None]


class Deadline:
    """A timer in the loop's heap."""

    __slots__ = ("__weakref__", "callback", "order", "owner", "when")

    def __init__(self, when: float, order: int, callback: Callback | None, owner: object = None) -> None:
        self.when = when
        self.order = order
        self.callback = callback
        self.owner = owner

    def cancel(self) -> None:
        """Cancel the timer. Its entry stays in the heap until it is due, or until the heap is cleaned up."""
        self.callback = None

    @property
    def waits(self) -> bool:
        """Whether the callback has still to run."""
        return self.callback is not None

    def __lt__(self, other: Deadline) -> bool:
        return (self.when, self.order) < (other.when, other.order)


class Loop:
    """One epoll, with timers and a few threads.

    Only :meth:`hand_over`, :meth:`stop` and :meth:`wake` may be called from other threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback | None] = {}
        self._timers: list[Deadline] = []
        self._room = FEW_TIMERS
        self._order = itertools.count()
        self._finished: deque[Callback] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = threading.RLock()  # reentrant: a signal handler may call wake() during close()
        self.stopping = False
        self.busy_poll: BusyPoll | None = None
        """Polls for a while before the loop sleeps; None if the owner wants no busy polling."""
        self.watch(self._wake, self._drain_wake)

    def watch(self, fd: int, callback: Callback | None = None) -> None:
        """Run ``callback`` whenever ``fd`` can be read. Without a callback, ``fd`` only ends a wait.

        The caller keeps ownership of ``fd``.
        """
        self._epoll.register(fd, select.EPOLLIN)
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Stop watching ``fd``. Call it before you close ``fd``."""
        if fd in self._callbacks:
            del self._callbacks[fd]
            self._epoll.unregister(fd)

    def wait(self, timeout: float | None = None) -> list[int]:
        """Sleep until something is ready or a timer is due. Returns the fds for :meth:`run`; no callback runs."""
        return [fd for fd, _ in self._sleep(timeout)]

    def look(self) -> Ready:
        """What is ready now, without sleeping: pairs of fd and events."""
        return self._epoll.poll(0)

    def sleeper(self) -> Callable[[], Ready]:
        """A callable that sleeps until something is ready or a timer is due, and returns what is ready.

        It is valid until a callback or a timer has run: these may set timers. Without timers and busy polling it is the
        method of the epoll itself, so that no Python code runs between the caller and the kernel.
        """
        return self._sleep if self._timers or self.busy_poll is not None else self._epoll.poll

    def _sleep(self, timeout: float | None = None) -> Ready:
        if self._timers:
            due = min(self._timers[0].when - self._clock(), LONGEST_WAIT)
            if due <= 0:
                return [*self._epoll.poll(0), _TIMER]
            timeout = due if timeout is None else min(timeout, due)
        if self.busy_poll is not None and timeout != 0:
            return self.busy_poll.wait(self._epoll, timeout)
        return self._epoll.poll(timeout)

    def run(self, ready: Iterable[int]) -> None:
        """Run the callback of each fd in ``ready`` that is still watched: an earlier callback may end a watch."""
        for fd in ready:
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()

    def run_timers(self) -> None:
        """Run the timers that are due now. A timer that they set runs in the next turn at the earliest."""
        if not self._timers:
            return
        now = self._clock()
        due = []
        while self._timers and self._timers[0].when <= now:
            due.append(heapq.heappop(self._timers))
        for timer in due:
            callback = timer.callback
            if callback is not None:
                timer.callback = None
                callback()

    @property
    def late(self) -> bool:
        """Whether a timer is due now."""
        return bool(self._timers) and self._timers[0].when <= self._clock()

    def run_due(self, owner: object) -> bool:
        """Run the timers of ``owner`` that are due now, in the middle of a turn. Returns whether there were any."""
        now = self._clock()
        due = sorted(each for each in self._timers if each.owner is owner and each.when <= now and each.callback)
        for timer in due:
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
        return bool(due)

    def after(self, delay: float, callback: Callback, owner: object = None) -> Deadline:
        """Run ``callback`` in ``delay`` seconds. A negative delay counts as 0. See :meth:`set_aside` for ``owner``."""
        timer = Deadline(self._clock() + max(0.0, delay), next(self._order), callback, owner)
        heapq.heappush(self._timers, timer)
        if len(self._timers) > self._room:  # a guest may make a device set and cancel a timer without end
            self._timers = [each for each in self._timers if each.callback is not None]
            heapq.heapify(self._timers)
            self._room = max(FEW_TIMERS, 2 * len(self._timers))
        return timer

    def remove(self, timer: Deadline) -> None:
        """Cancel a timer and take it out of the heap. Use it where the timer would often be the only one: any entry in
        the heap makes each sleep slower.
        """
        timer.cancel()
        if timer in self._timers:
            self._timers.remove(timer)
            heapq.heapify(self._timers)

    def set_aside(self, owner: object) -> list[tuple[float, Deadline]]:
        """Take the timers of ``owner`` out, and return each with the seconds that are left."""
        now = self._clock()
        taken = [(timer.when - now, timer) for timer in sorted(self._timers) if timer.owner is owner]
        self._timers = [timer for timer in self._timers if timer.owner is not owner]
        heapq.heapify(self._timers)
        return taken

    def put_back(self, timers: Iterable[tuple[float, Deadline]]) -> None:
        """Set timers again that :meth:`set_aside` returned. Those that were cancelled meanwhile never run."""
        now = self._clock()
        for left, timer in timers:
            timer.when = now + left
            heapq.heappush(self._timers, timer)

    def background(
        self,
        work: Callable[[], Any],
        done: Callable[[Future[Any]], None],
        hand_over: Callable[[Callback], None] | None = None,
    ) -> None:
        """Run ``work`` on one of a few threads, then ``done`` with its future on the loop's thread.

        ``hand_over``, if given, takes the place of the loop's own. It is called on any thread.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="background")
        give = hand_over or self.hand_over
        self._pool.submit(work).add_done_callback(lambda future: give(lambda: done(future)))

    def hand_over(self, callback: Callback) -> None:
        """Run ``callback`` on the loop's thread, in its next turn. Any thread may call it.

        The worker handles the messages and rings that have arrived by then before it runs ``callback``. A callback that
        is handed over to a loop that has ended never runs.
        """
        self._finished.append(callback)
        self.wake()

    def wake(self) -> None:
        """End the current or the next :meth:`wait`. Any thread or signal handler may call it."""
        with self._closing:
            if self._wake != -1:
                os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """Set :attr:`stopping`, and end the wait. Any thread or signal handler may call it."""
        self.stopping = True
        self.wake()

    def close(self) -> None:
        """Drop timers and queued background work, wait for work that runs, and close the loop's own fds."""
        self._timers.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._finished.clear()
        self._callbacks.clear()
        self._epoll.close()
        with self._closing:
            os.close(self._wake)
            self._wake = -1

    def _drain_wake(self) -> None:
        os.eventfd_read(self._wake)
        for _ in range(len(self._finished)):
            self._finished.popleft()()
