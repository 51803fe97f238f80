"""``count``: how often each register, doorbell and vector is used."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bellwire.filters import Argument, DmaRead, DmaWrite, Filter, Interrupt, Read, Reset, Ring, Write

MOST_NAMES = 4096
OTHERS = "others"


class Count(Filter):
    """Counts accesses, rings and interrupts by name; with ``dma`` also the bytes that the device copies."""

    dma = Argument(False, help="count DMA too: the device then copies all guest memory that it uses")

    def start(self) -> None:
        """Nothing was counted yet."""
        self.counts: Counter[str] = Counter()

    def before_read(self, read: Read) -> None:
        """A guest reads."""
        self._add("read " + read.place.name)

    def before_write(self, write: Write) -> None:
        """A guest writes."""
        self._add("write " + write.place.name)

    def before_config_read(self, read: Read) -> None:
        """A guest reads config space."""
        self._add("read " + read.place.name)

    def before_config_write(self, write: Write) -> None:
        """A guest writes config space."""
        self._add("write " + write.place.name)

    def before_ring(self, ring: Ring) -> None:
        """A guest rings."""
        self._add(f"ring {ring.name} by {ring.mechanism}", ring.count)

    def after_interrupt(self, interrupt: Interrupt) -> None:
        """The device interrupts."""
        self._add(f"{interrupt.kind.name} {interrupt.vector} {interrupt.outcome}")

    def after_dma_read(self, read: DmaRead) -> None:
        """The device reads guest memory."""
        self._add("bytes read by DMA", read.size)

    def after_dma_write(self, write: DmaWrite) -> None:
        """The device writes guest memory."""
        self._add("bytes written by DMA", write.size)

    def after_reset(self, reset: Reset) -> None:
        """The device was reset."""
        self._add("reset")

    def wants(self, method: str) -> bool:
        """All events, but DMA only if it is asked for."""
        return self.dma or "dma" not in method

    def report(self) -> dict[str, Any]:
        """The counts, the largest first."""
        return dict(self.counts.most_common())

    def _add(self, name: str, count: int = 1) -> None:
        """Count. A guest may read any bytes of a BAR, so what is beyond MOST_NAMES shares one name."""
        if name not in self.counts and len(self.counts) >= MOST_NAMES:
            name = OTHERS
        self.counts[name] += count
