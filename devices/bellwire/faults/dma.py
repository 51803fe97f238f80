"""Faults of DMA: what the device reads and writes in guest memory.

Device code that uses guest memory in place, as a view, is not struck: a filter sees no bytes that move there.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from bellwire.errors import OptionError
from bellwire.faults.fault import Fault
from bellwire.filters import Argument, DmaRead, DmaWrite, Duration

MOST_KEPT = 256
"""Ranges whose last content is kept, for stale reads."""
LONGEST_KEPT = 64 << 10  # bytes of such a range


class DmaFault(Fault):
    """A fault of DMA of some sizes, or of all."""

    least = Argument(1, least=1, help="the fewest bytes of a DMA that can be struck")
    most = Argument(64 << 20, least=1, help="the most bytes")

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self.least > self.most:
            raise OptionError(f"filter {self.name}: least={self.least},most={self.most}: no DMA has such a size")

    def concerns(self, size: int) -> bool:
        """Whether a DMA of ``size`` bytes can be struck."""
        return self.least <= size <= self.most


class _Remembering(DmaFault):
    """A fault that gives the device what it has read from the same range before."""

    def start(self) -> None:
        """Nothing has been read before."""
        super().start()
        self._before: OrderedDict[tuple[int, int], bytes] = OrderedDict()

    def earlier(self, read: DmaRead) -> bytes:
        """What the last read of this range gave, zeros if there was none; the present content is kept."""
        key, now = (read.address, read.size), read.data
        before = self._before.pop(key, bytes(read.size))
        if read.size <= LONGEST_KEPT:
            self._before[key] = now
            if len(self._before) > MOST_KEPT:
                self._before.popitem(last=False)
        return before


class CorruptDma(DmaFault, name="corrupt-dma"):
    """What the device reads from guest memory is wrong, in a bit or in a byte."""

    driver = "Protects its data by checksums where it matters; a command that the device cannot understand fails alone."

    kind = Argument("bit", choices=("bit", "byte"), help="what is wrong: one bit, or all bits of a byte at random")

    def after_dma_read(self, read: DmaRead) -> None:
        """Change one bit, or one byte."""
        if read.size and self.concerns(read.size) and self.strikes("a %s of a DMA read is wrong", self.kind):
            data = bytearray(read.data)
            place = self.random.randrange(len(data))
            data[place] ^= 1 << self.random.randrange(8) if self.kind == "bit" else self.random.randrange(1, 256)
            read.data = data


class StaleDma(_Remembering, name="stale-dma"):
    """The device reads what guest memory held before: what its last read of the same range gave, at first zeros."""

    driver = "Puts a barrier between what it writes and the ring that tells of it (dma_wmb in Linux)."

    def after_dma_read(self, read: DmaRead) -> None:
        """Give the old bytes."""
        if self.concerns(read.size):
            before = self.earlier(read)
            if self.strikes("a DMA read is stale"):
                read.data = before


class TornDma(_Remembering, name="torn-dma"):
    """The device reads guest memory while it changes: the second half is what it was before."""

    driver = "Publishes a descriptor only when it is complete, by an index or a bit that it writes last."

    def after_dma_read(self, read: DmaRead) -> None:
        """Put new and old bytes together."""
        if self.concerns(read.size):
            before, half = self.earlier(read), read.size // 2
            if self.strikes("a DMA read is torn"):
                read.data = read.data[:half] + before[half:]


class FailedDma(DmaFault, name="failed-dma"):
    """A DMA of the device fails, as at an address that an IOMMU refuses."""

    driver = "Gets an error from the device, or a timeout; it resets the device, and fails the requests that are open."

    way = Argument("read", choices=("read", "write", "both"), help="which DMA: read, write or both")

    def before_dma_read(self, read: DmaRead) -> None:
        """Fail a read."""
        if self.way != "write" and self.concerns(read.size) and self.strikes("a DMA read fails"):
            read.fail("fault failed-dma")

    def before_dma_write(self, write: DmaWrite) -> None:
        """Fail a write."""
        if self.way != "read" and self.concerns(write.size) and self.strikes("a DMA write fails"):
            write.fail("fault failed-dma")


class LostDma(DmaFault, name="lost-dma"):
    """What the device writes to guest memory is lost."""

    driver = "Notices by a timeout that a completion is missing, and resets the device; it uses no data without one."

    def before_dma_write(self, write: DmaWrite) -> None:
        """Drop the write."""
        if self.concerns(write.size) and self.strikes("a DMA write is lost"):
            write.drop()


class LateDma(DmaFault, name="late-dma"):
    """What the device writes to guest memory arrives late: an interrupt overtakes it."""

    delays = True

    driver = "Looks at the completion itself, not at the interrupt; an interrupt without one is not an error."

    by = Duration(0.005, most=60.0, help="how late")

    def before_dma_write(self, write: DmaWrite) -> None:
        """Hold the write back."""
        if self.concerns(write.size) and self.strikes("a DMA write is late"):
            write.delay(self.by)
