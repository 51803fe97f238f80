"""Busy polling: a worker looks for work for a while before it sleeps. It costs CPU time, and saves the wake-up."""

from __future__ import annotations

import select
import time

from vfio_user import Ready

FIRST = 20e-6  # seconds: the first budget, about the time that a wake-up takes
MOST = 1e-3
"""The largest budget that an owner may choose, in seconds."""


class BusyPoll:
    """Waits on an epoll: it polls for up to ``most`` seconds, then sleeps.

    The time that it polls (the budget) adapts itself, as in the kernel's halt polling
    (Documentation/virt/kvm/halt-polling.rst): work that comes soon after the worker went to sleep doubles the budget,
    and work that comes late halves it. So the worker of an idle device sleeps, and the worker of a busy device is awake
    when a ring comes.
    """

    def __init__(self, most: float) -> None:
        if not 0 < most <= MOST:
            raise ValueError(f"a busy poll of {most * 1e6:g} µs: expected up to {MOST * 1e6:g}")
        self.budget = 0.0
        """The seconds that the next wait polls before it sleeps."""
        self._most = most

    def wait(self, epoll: select.epoll, timeout: float | None) -> Ready:
        """What is ready in ``epoll``: pairs of fd and events. Empty after ``timeout`` seconds; None waits for ever."""
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
