"""What has happened to a device since it was started, in numbers."""

from __future__ import annotations


class Tally:
    """Counters, plain and always on: each costs one addition where it counts."""

    __slots__ = ("clients", "failures", "guest_errors", "interrupts", "reads", "resets", "rings", "writes")

    def __init__(self) -> None:
        self.clients = 0
        self.reads = 0
        self.writes = 0
        self.rings = {"ioeventfd": 0, "ioregionfd": 0, "message": 0}
        self.interrupts = 0
        self.resets = 0
        self.guest_errors = 0
        self.failures = 0

    def to_dict(self) -> dict[str, int]:
        """All of it, flat: rings by mechanism."""
        numbers = {name: getattr(self, name) for name in self.__slots__ if name != "rings"}
        return numbers | {f"rings_{mechanism}": count for mechanism, count in self.rings.items()}
