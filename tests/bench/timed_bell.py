"""The bell device, with the time of the last arrival to be read: ``bellwire run tests/bench/timed_bell.py``."""

from __future__ import annotations

import time

from bellwire.bundled.bell import Bell


class TimedBell(Bell, vendor=0x1234, device=0xBE11, class_code=0x088000, name="timed-bell"):
    """Counts and interrupts as bell does."""

    arrival = Bell.control.reg(0xA0, size=8, access="ro")  # ns of CLOCK_MONOTONIC

    def arrived(self) -> None:
        """Note when."""
        self.arrival = time.monotonic_ns()
        super().arrived()
