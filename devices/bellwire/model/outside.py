"""The outside: the time and random bytes, as device code gets them. A recording keeps them, and a replay gives them."""

from __future__ import annotations

import os
import time


class Outside:
    """The machine's own clock and random numbers."""

    def clock(self) -> int:
        """The time since the machine was started, in nanoseconds (CLOCK_BOOTTIME)."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def random(self, count: int) -> bytes:
        """``count`` random bytes (getrandom(2))."""
        return os.getrandom(count)


class Chancy:
    """The part of :class:`~bellwire.PciDevice` for time and chance."""

    outside: Outside

    def clock(self) -> int:
        """The time since the machine was started, in nanoseconds (CLOCK_BOOTTIME).

        For what a guest sees of the time: a replay of a recording gives the recorded time. The same holds for
        :meth:`random_bytes`.
        """
        return self.outside.clock()

    def random_bytes(self, count: int) -> bytes:
        """``count`` random bytes, fit for secrets (getrandom(2))."""
        return self.outside.random(count)
