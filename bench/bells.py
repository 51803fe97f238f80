"""Variants of the bell device with more doorbells and more counters: ``bellwire run bench/bells.py:NAME``."""

from __future__ import annotations

import time

from bellwire import Bar
from bellwire.bundled.bell import Bell
from bellwire.filters.builtin.count import Count

PATIENCE = 1.0  # seconds without an arrival after which a polling bell gives up


class TimedBell(Bell, name="timed-bell"):
    """A bell that records when the last ring arrived."""

    arrival = Bell.control.reg(0xC0, size=8, access="ro")  # ns of CLOCK_MONOTONIC

    def arrived(self) -> None:
        """Record the time."""
        self.arrival = time.monotonic_ns()
        super().arrived()


class Left(Count):
    """Counts, and leaves as soon as it can: what is left of it is what a filter costs that was there."""

    def start(self) -> None:
        """It has come."""
        super().start()
        self.leave()


class NotedBell(Bell, name="noted-bell"):
    """A bell that is also rung by loads and by writes in batches. Each arrival changes a word in guest memory."""

    load = Bell.control.reg(0x14, access="ro")
    note_at = Bell.control.reg(0x18, size=8)
    batched = Bell.control.reg(0x20)
    load_count = Bell.control.reg(0xA0, size=8, access="ro")
    batched_count = Bell.control.reg(0xA8, size=8, access="ro")
    batched_errors = Bell.control.reg(0xB0, size=8, access="ro")
    note: memoryview | None = None

    def reset(self) -> None:
        """Forget the word in guest memory."""
        self.note = None

    def clear_counters(self, value: int) -> None:
        """Clear this bell's own counters too."""
        super().clear_counters(value)
        self.load_count = self.batched_count = self.batched_errors = 0

    @note_at.write
    def note_there(self, address: int) -> None:
        """The word's address in guest memory; 0 for no word."""
        self.note = self.dma.map(address, 4, write=True)[0].cast("I") if address else None

    @load.read
    def loaded(self) -> int:
        """The number of loads, including this one."""
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
    """A bell that is rung by stores to an area. The device does not see the stores; it polls when it is told to."""

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
        """Begin to poll after the guest has its reply."""
        self.after(0, self.look_for, arrivals)

    def look_for(self, arrivals: int) -> None:
        """Poll until the guest has counted to the end, or has stopped counting."""
        word, seen = self.mapped.cast("I"), self.mapped_count
        end, deadline = seen + arrivals, time.monotonic() + PATIENCE
        while seen < end and time.monotonic() < deadline:
            count = word[0]
            if count != seen:
                self.mapped_count = seen = count
                self.arrived()
                deadline = time.monotonic() + PATIENCE
