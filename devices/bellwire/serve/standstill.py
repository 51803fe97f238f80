"""A device's share of its worker's loop: all of it can stand still together, and go on later.

Device code runs from the loop when a descriptor can be read, when a timer is due, and when a thread has a result. While
the device stands still, its descriptors are not watched, the clocks of its timers stop, and results wait. The rest of
the loop goes on: the client's socket, and the manager's.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from bellwire.serve.loop import Callback, Deadline, Loop


class Standstill:
    """The descriptors, timers and results of one device on ``loop``."""

    def __init__(self, loop: Loop) -> None:
        self.still = False
        self._loop = loop
        self._watched: dict[int, Callback | None] = {}
        self._aside: list[tuple[float, Deadline]] = []
        self._results: deque[Callback] = deque()
        self._working = 0

    def watch(self, fd: int, callback: Callback | None = None) -> None:
        """As :meth:`Loop.watch`."""
        if not self.still:
            self._loop.watch(fd, callback)
        self._watched[fd] = callback

    def unwatch(self, fd: int) -> None:
        """As :meth:`Loop.unwatch`."""
        self._watched.pop(fd, None)
        self._loop.unwatch(fd)

    def after(self, delay: float, callback: Callback) -> Deadline:
        """As :meth:`Loop.after`. The time does not count while the device stands still."""
        timer = self._loop.after(delay, callback, owner=self)
        if self.still:
            self._aside += self._loop.set_aside(self)
        return timer

    @property
    def late(self) -> bool:
        """As :attr:`Loop.late`."""
        return self._loop.late

    def run_due(self) -> bool:
        """As :meth:`Loop.run_due`, for the device's timers."""
        return self._loop.run_due(self)

    def background(self, work: Callable[[], Any], done: Callable[[Future[Any]], None]) -> None:
        """As :meth:`Loop.background`."""

        def deliver(result: Callback) -> None:
            self._results.append(result)
            self._loop.hand_over(self._deliver)

        self._working += 1
        self._loop.background(work, done, deliver)

    def _deliver(self) -> None:
        """Hand on the next result."""
        if self._results and not self.still:
            self._working -= 1
            self._results.popleft()()

    def settle(self, seconds: float, finish: Callable[[], None]) -> None:
        """Let what threads work on come to its end, for at most ``seconds``. ``finish`` waits for jobs of pools."""
        end = time.monotonic() + seconds
        while True:
            finish()
            self._deliver()
            if not self.run_ready() and not self._results and not self._working:
                return
            if time.monotonic() >= end:
                return
            if self._working and not self._results:
                time.sleep(0.0005)  # background work has no descriptor to wait for, and mostly ends at once

    def run_ready(self) -> bool:
        """Run the callbacks of the descriptors that can be read. Returns whether there were any."""
        poll = select.poll()
        for fd, callback in self._watched.items():
            if callback is not None:
                poll.register(fd, select.POLLIN)
        ready = poll.poll(0)
        for fd, _ in ready:
            callback = self._watched.get(fd)
            if callback is not None:
                callback()
        return bool(ready)

    def stop(self) -> None:
        """Stand still."""
        self.still = True
        for fd in self._watched:
            self._loop.unwatch(fd)
        self._aside = self._loop.set_aside(self)

    def go(self) -> None:
        """Go on."""
        self.still = False
        for fd, callback in self._watched.items():
            self._loop.watch(fd, callback)
        self._loop.put_back(self._aside)
        self._aside = []
        for _ in self._results:
            self._loop.hand_over(self._deliver)
