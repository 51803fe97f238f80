"""The tally: counts of what has happened to a device since its start."""

from __future__ import annotations

from collections import Counter
from typing import Any

Count = list[int]
"""One counter, in a list so that code can add to it in place: a hot path then looks it up only once."""


class Tally:
    """Counters that are always on. Each costs one addition.

    ``accesses`` counts reads and writes by the name of what lies there (``"status"``), ``rings`` by doorbell and
    mechanism, ``interrupts`` by kind and vector. :class:`bellwire.model.dma.Dma` counts its bytes itself.
    """

    __slots__ = (
        "accesses",
        "clients",
        "failures",
        "faults",
        "guest_errors",
        "interrupts",
        "reads",
        "resets",
        "rings",
        "writes",
    )

    def __init__(self) -> None:
        self.clients = 0
        self.reads = 0
        self.writes = 0
        self.accesses: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
        """Reads (False) and writes (True) by name. An access that touches several registers counts for each of them."""
        self.rings: dict[str, dict[str, Count]] = {"ioeventfd": {}, "shadow": {}, "ioregionfd": {}, "message": {}}
        self.interrupts: dict[str, list[int]] = {}
        self.resets = 0
        self.guest_errors = 0
        self.failures = 0
        self.faults = 0
        """Events that a fault has struck (:mod:`bellwire.faults`)."""

    def ring(self, mechanism: str, bell: object) -> Count:
        """The counter of the rings of ``bell`` by ``mechanism``. It is the same list as long as the device lives."""
        return self.rings[mechanism].setdefault(str(bell), [0])

    def vectors(self, kind: str, count: int) -> list[int]:
        """The counters of the interrupts of ``kind``, one for each vector."""
        return self.interrupts.setdefault(kind, [0] * count)

    def rung(self, mechanism: str) -> int:
        """The number of all rings by ``mechanism``."""
        return sum(count for (count,) in self.rings[mechanism].values())

    def to_dict(self) -> dict[str, int]:
        """A summary: a few totals by name."""
        plain: tuple[str, ...] = ("clients", "reads", "writes", "resets", "guest_errors", "failures", "faults")
        numbers: dict[str, Any] = {name: getattr(self, name) for name in plain}
        numbers["interrupts"] = sum(map(sum, self.interrupts.values()))
        return numbers | {f"rings_{mechanism}": self.rung(mechanism) for mechanism in self.rings}
