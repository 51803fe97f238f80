"""The history of a device's counters: how much each has grown a second, lately."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

LENGTH = 60
"""Rates that are kept of each counter."""
_LEVELS = frozenset({"dma_maps", "connected"})  # these are no counts of what has happened


class History:
    """The rates of the counters of one device. A counter that goes down belongs to a new worker, and begins anew."""

    def __init__(self) -> None:
        self.rates: dict[str, deque[float]] = {}
        """By counter, in units a second, the latest last. A counter that has always been 0 is not there."""
        self.totals: dict[str, int] = {}
        self._last = 0.0

    def add(self, now: float, counters: Mapping[str, int]) -> None:
        """Take a reading made at ``now``, in seconds of a clock that never goes back."""
        elapsed, self._last = now - self._last, now
        first = not self.totals
        for name, total in counters.items():
            before = self.totals.get(name, 0)
            self.totals[name] = total
            if name in _LEVELS or (not total and name not in self.rates):
                continue
            grown = total - before if total >= before else total
            rates = self.rates.setdefault(name, deque([0.0] * LENGTH, LENGTH))
            rates.append(0.0 if first or elapsed <= 0 else grown / elapsed)
