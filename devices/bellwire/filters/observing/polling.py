"""Loops that read registers again and again, without a pause, while nothing changes."""

from __future__ import annotations

from collections import deque

MOST_PLACES = 4
"""Places that one loop reads in turn."""


class Polling:
    """The reads of a guest in a row. They are a tight loop once ``least`` of them took less than ``within`` seconds.

    All are of the same few places, and each place gives what it gave before: another value is what a loop waits for.
    """

    def __init__(self, least: int, within: float) -> None:
        self._times: deque[float] = deque(maxlen=least)
        self._within = within
        self._values: dict[str, int] = {}
        self._since = 0.0
        self.reads = 0
        """Of the tight loop so far; 0 while there is none."""

    def goes_on(self, place: str, value: int, now: float) -> bool:
        """Whether a read at ``now`` may belong to those before it. If not, :meth:`clear` them first."""
        if self.reads and now - self._times[0] >= self._within:
            return False
        if place not in self._values:
            return len(self._values) < MOST_PLACES
        return self._values[place] == value

    def read(self, place: str, value: int, now: float) -> bool:
        """Count a read. Returns whether the loop has just become a tight one."""
        self._values[place] = value
        self._times.append(now)
        if self.reads:
            self.reads += 1
        elif len(self._times) == self._times.maxlen and now - self._times[0] < self._within:
            self._since, self.reads = self._times[0], len(self._times)
            return True
        return False

    def clear(self) -> None:
        """Something has happened: the next read is the first."""
        self._times.clear()
        self._values.clear()
        self.reads = 0

    @property
    def places(self) -> str:
        """What is read, as ``"status"`` or ``"count, status"``."""
        return ", ".join(sorted(self._values))

    @property
    def length(self) -> str:
        """How often and how long the tight loop has read, in words."""
        seconds = self._times[-1] - self._since
        return f"{self.reads:,} reads in {1e3 * seconds:,.1f} ms"
