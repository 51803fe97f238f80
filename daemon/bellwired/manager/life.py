"""The states of a device under the manager, how a worker has ended, and when the next one starts."""

from __future__ import annotations

import time
from collections import deque
from enum import StrEnum

from bellwired.settings import Daemon
from bellwired.signals import signal_name

SHORT = 0.2
"""The seconds below which a worker's life was short."""
MOST_SHORT = 2  # short lives in a row, after which the next worker has to wait


class State(StrEnum):
    """The state of a device under the manager."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    """The worker has died, and the delay before its restart runs."""
    STOPPING = "stopping"
    FAILED = "failed"


class Restarts:
    """Decides when a device that has died is restarted: after a growing delay, and up to a limit."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()
        self._short = 0  # lives in a row that were short
        self.hung = False
        """Whether the last worker was killed because it hung, in what is not to be done again then."""
        self.unready = 0
        """The workers in a row that have died before they were ready."""

    @property
    def deaths(self) -> int:
        """The number of deaths within the restart window."""
        return len(self._deaths)

    @property
    def stuck(self) -> bool:
        """Whether several workers in a row have not got further than their start."""
        return self.unready > MOST_SHORT

    def served(self) -> None:
        """The worker that was started last is ready."""
        self.hung = False
        self.unready = 0

    def delay(self, daemon: Daemon, *, served: float | None = None) -> float | None:
        """Record a death. The seconds to wait before the restart; None if the device has died too often.

        ``served`` is how long the worker has served a client who waits for a successor now. Unless that was short
        twice in a row, the successor starts at once.
        """
        now = time.monotonic()
        self._deaths.append(now)
        while now - self._deaths[0] > daemon.restart_window:
            self._deaths.popleft()
        if self.deaths > daemon.restart_limit:
            return None
        self._short = self._short + 1 if served is not None and served < SHORT else 0
        if served is not None and self._short < MOST_SHORT:
            return 0.0
        deaths = self.deaths if served is None else self._short - 1
        return min(daemon.restart_delay_max, daemon.restart_delay * 2.0 ** (deaths - 1))

    def forget(self) -> None:
        """Forget all earlier deaths."""
        self._deaths.clear()


def how_it_ended(status: int, what: str = "its worker") -> str:
    """How a worker has ended, in words. A negative ``status`` is the number of a signal."""
    return f"{what} was killed by {signal_name(-status)}" if status < 0 else f"{what} ended with status {status}"
