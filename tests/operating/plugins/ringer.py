"""A bell that survives its process: what was under way then may come again."""

from __future__ import annotations

from bellwire.bundled.bell import Bell


class Ringer(Bell, name="ringer", repeats=True):
    """A bell that knows a value that comes again after a hand-over: it is the last one."""

    def value_rang(self, value: int) -> None:
        if value != self.value_count or not value:
            super().value_rang(value)

    def latest_rang(self, value: int) -> None:
        """A ring that comes again counts again, so the count may be ahead of the value."""
        self.latest_count = self.latest.rung - self.latest_base
        self.latest_errors += value < self.latest_value
        self.latest_value = value
        self.arrived()

    def plain_written(self, value: int) -> None:
        if value != self.plain_count or not value:
            super().plain_written(value)

    def region_written(self, offset: int, size: int, value: int) -> None:
        if offset or value != self.acked_count or not value:
            super().region_written(offset, size, value)
