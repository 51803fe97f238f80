"""How much data a disk or a network card has moved, and how long that has taken: for the daemon's metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bellwire.device import PciDevice

SHIFT = 12
"""The first bucket ends at 2 ** SHIFT nanoseconds, and each further one at twice as much."""
MOST = 64 - SHIFT + 1  # of a time in 64 bits
LAST = 20
"""The last bucket that has an end of its own: 2 ** (SHIFT + LAST) ns are 4.3 s."""

Totals = dict[str, tuple[int, int]]
"""By direction: operations, and bytes."""


class Meter:
    """The meter of ``device``. ``totals`` is called when somebody asks, so it may add up what the device counts anyway.

    Make it in ``setup``. ``took`` is cheap: call it once for a batch.
    """

    __slots__ = ("_buckets", "_nanoseconds", "_totals")

    def __init__(self, device: PciDevice, totals: Callable[[], Totals]) -> None:
        self._totals = totals
        self._buckets = [0] * MOST
        self._nanoseconds = 0
        device.core.meter = self

    def took(self, nanoseconds: int, count: int = 1) -> None:
        """Note that ``count`` operations have taken so long each."""
        self._buckets[(nanoseconds >> SHIFT).bit_length()] += count
        self._nanoseconds += nanoseconds * count

    def to_dict(self) -> dict[str, Any]:
        """All numbers. ``latency`` has the operations by bucket; the last one has all that took longer."""
        buckets = self._buckets
        latency = [*buckets[: LAST + 1], sum(buckets[LAST + 1 :])]
        return {"totals": self._totals(), "latency": latency, "nanoseconds": self._nanoseconds}
