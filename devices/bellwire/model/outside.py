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
