"""Looking again and again before going to sleep: for those who would rather spend a processor than wait for it."""

from __future__ import annotations

import select
import time

from vfio_user import Ready

FIRST = 20e-6  # seconds: the first budget, about what it takes to be woken
MOST = 1e-3
"""The longest budget that may be asked for, in seconds."""


class BusyPoll:
    """Waits on an epoll, with up to ``most`` seconds of looking first.

    How long it looks adapts itself, as the kernel's halt polling does (Documentation/virt/kvm/halt-polling.rst): what
    comes soon after we went to sleep doubles the budget, what comes late halves it, so that a device that has nothing
    to do sleeps, and one that is rung often is awake when it is rung.
    """

    def __init__(self, most: float) -> None:
        if not 0 < most <= MOST:
            raise ValueError(f"a busy poll of {most * 1e6:g} µs: expected up to {MOST * 1e6:g}")
        self.budget = 0.0
        """Seconds that are spent looking now."""
        self._most = most

    def wait(self, epoll: select.epoll, timeout: float | None) -> Ready:
        """What is ready; nothing after ``timeout`` seconds."""
        poll, clock = epoll.poll, time.monotonic
        begin = clock()
        end = begin + (self.budget if timeout is None else min(self.budget, timeout))
        while True:
            ready = poll(0)
            if ready:
                return ready
            if clock() >= end:
                break
        ready = poll(None if timeout is None else max(0.0, begin + timeout - clock()))
        if clock() - begin <= self._most:
            self.budget = min(max(2 * self.budget, FIRST), self._most)
        else:
            self.budget = self.budget / 2 if self.budget > FIRST else 0.0
        return ready
