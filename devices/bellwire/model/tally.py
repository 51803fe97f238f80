"""What has happened to a device since it was started, in numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any

Count = list[int]
"""One number, to be added to in place: a loop that rings need not look it up each time."""


class Tally:
    """Counters, plain and always on: each costs one addition where it counts.

    ``accesses`` has the reads and the writes by what lies there (``"status"``), ``rings`` those by doorbell and
    mechanism, ``interrupts`` those by kind and vector. DMA counts itself (:class:`bellwire.model.dma.Dma`).
    """

    __slots__ = ("accesses", "clients", "failures", "guest_errors", "interrupts", "reads", "resets", "rings", "writes")

    def __init__(self) -> None:
        self.clients = 0
        self.reads = 0
        self.writes = 0
        self.accesses: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
        """By whether they were writes. An access that touches several registers counts for each."""
        self.rings: dict[str, dict[str, Count]] = {"ioeventfd": {}, "ioregionfd": {}, "message": {}}
        self.interrupts: dict[str, list[int]] = {}
        self.resets = 0
        self.guest_errors = 0
        self.failures = 0

    def ring(self, mechanism: str, bell: object) -> Count:
        """What counts the rings of ``bell`` that come by ``mechanism``; the same for as long as the device lives."""
        return self.rings[mechanism].setdefault(str(bell), [0])

    def vectors(self, kind: str, count: int) -> list[int]:
        """What counts the interrupts of a kind, by vector."""
        return self.interrupts.setdefault(kind, [0] * count)

    def rung(self, mechanism: str) -> int:
        """All rings by ``mechanism``."""
        return sum(count for (count,) in self.rings[mechanism].values())

    def to_dict(self) -> dict[str, int]:
        """In a few numbers."""
        plain: tuple[str, ...] = ("clients", "reads", "writes", "resets", "guest_errors", "failures")
        numbers: dict[str, Any] = {name: getattr(self, name) for name in plain}
        numbers["interrupts"] = sum(map(sum, self.interrupts.values()))
        return numbers | {f"rings_{mechanism}": self.rung(mechanism) for mechanism in self.rings}
