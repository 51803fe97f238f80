"""The bell device, rung in a few ways more and looked at more closely: ``bellwire run bench/bells.py:NAME``."""

from __future__ import annotations

import time

from bellwire import Bar
from bellwire.bundled.bell import Bell

PATIENCE = 1.0  # seconds without an arrival until a bell that polls gives up


class TimedBell(Bell, name="timed-bell"):
    """Tells when the last ring arrived."""

    arrival = Bell.control.reg(0xC0, size=8, access="ro")  # ns of CLOCK_MONOTONIC

    def arrived(self) -> None:
        """Note when."""
        self.arrival = time.monotonic_ns()
        super().arrived()


class NotedBell(Bell, name="noted-bell"):
    """Rung by loads and by writes that come many at once, too; each arrival changes a word in the guest's memory."""

    load = Bell.control.reg(0x14, access="ro")
    note_at = Bell.control.reg(0x18, size=8)
    batched = Bell.control.reg(0x20)
    load_count = Bell.control.reg(0xA0, size=8, access="ro")
    batched_count = Bell.control.reg(0xA8, size=8, access="ro")
    batched_errors = Bell.control.reg(0xB0, size=8, access="ro")
    note: memoryview | None = None

    def reset(self) -> None:
        """Nobody wants to be told."""
        self.note = None

    def clear_counters(self, value: int) -> None:
        """These too."""
        super().clear_counters(value)
        self.load_count = self.batched_count = self.batched_errors = 0

    @note_at.write
    def note_there(self, address: int) -> None:
        """Where the word is; 0 for none."""
        self.note = self.dma.map(address, 4, write=True)[0].cast("I") if address else None

    @load.read
    def loaded(self) -> int:
        """How often it has been."""
        self.load_count += 1
        self.arrived()
        return self.load_count

    @batched.write
    def batched_written(self, value: int) -> None:
        """Counts as plain does."""
        self.batched_count += 1
        self.batched_errors += value != self.batched_count & 0xFFFF_FFFF
        self.arrived()

    def arrived(self) -> None:
        """Change the word."""
        if self.note is not None:
            self.note[0] = self.note[0] + 1 & 0xFFFF_FFFF
        super().arrived()


class PolledBell(NotedBell, name="polled-bell"):
    """Rung by stores to memory that the guest has mapped, which nobody is told of: the device looks, when asked to."""

    mapped_count = Bell.control.reg(0xB8, size=8, access="ro")
    look = Bell.control.reg(0x24)
    shared = Bar(3, size=4096)
    mapped = shared.area(0, 4096)

    def clear_counters(self, value: int) -> None:
        """The guest counts from 1 again."""
        super().clear_counters(value)
        self.mapped.cast("I")[0] = self.mapped_count = 0

    @look.write
    def look_soon(self, arrivals: int) -> None:
        """Once the guest has its reply."""
        self.after(0, self.look_for, arrivals)

    def look_for(self, arrivals: int) -> None:
        """Look until the guest has counted so far, or has stopped counting."""
        word, seen = self.mapped.cast("I"), self.mapped_count
        end, deadline = seen + arrivals, time.monotonic() + PATIENCE
        while seen < end and time.monotonic() < deadline:
            count = word[0]
            if count != seen:
                self.mapped_count = seen = count
                self.arrived()
                deadline = time.monotonic() + PATIENCE
