"""The life of a device under the manager: its stations, how a worker's comes to an end, and when the next begins."""

from __future__ import annotations

import signal
import time
from collections import deque
from enum import StrEnum

from bellwired.settings import Daemon


class State(StrEnum):
    """Where a device is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    """For its next restart."""
    STOPPING = "stopping"
    FAILED = "failed"


class Restarts:
    """When a device that has died may be tried again: later each time, and not too often."""

    def __init__(self) -> None:
        self._deaths: deque[float] = deque()

    @property
    def deaths(self) -> int:
        """Those that count."""
        return len(self._deaths)

    def delay(self, daemon: Daemon) -> float | None:
        """It has just died: the seconds to wait, None where it has died too often."""
        now = time.monotonic()
        self._deaths.append(now)
        while now - self._deaths[0] > daemon.restart_window:
            self._deaths.popleft()
        if self.deaths > daemon.restart_limit:
            return None
        return min(daemon.restart_delay_max, daemon.restart_delay * 2.0 ** (self.deaths - 1))

    def forget(self) -> None:
        """Nothing that has been counts any more."""
        self._deaths.clear()


def how_it_ended(status: int) -> str:
    """A worker, in words; a negative ``status`` is the number of a signal."""
    return f"its worker was killed by {_signal(-status)}" if status < 0 else f"its worker ended with status {status}"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
