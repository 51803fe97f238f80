"""What answers an access to a BAR that exits to the VMM: the MSI-X table, a relay, or a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bellwire_vmm.device.bars import Bar
from bellwire_vmm.device.msix import MsixTable
from bellwire_vmm.device.peer import Peer
from bellwire_vmm.device.registrations import Count
from bellwire_vmm.device.relay import RelayedRegion
from vfio_user import ShadowBell


class BarTarget:
    """One BAR, as `bus.Target`.

    ``posted`` lets writes go without waiting for their reply. ``table`` is given for the BARs that hold the
    device's MSI-X table or its pending bits. ``counts`` counts writes at some offsets, ``reads`` and ``writes`` all.
    ``shadows`` are the doorbells that the VMM rings itself, by offset and size.
    """

    def __init__(
        self,
        peer: Peer,
        bar: Bar,
        relayed: Sequence[RelayedRegion],
        counts: Mapping[int, Count],
        shadows: Mapping[tuple[int, int], ShadowBell],
        table: MsixTable | None,
        *,
        posted: bool,
    ) -> None:
        self.peer = peer
        self.bar = bar
        self.index = bar.index
        self.reads = self.writes = 0
        self._counts = counts
        self._shadows = shadows
        self._relayed = relayed
        self._posted = posted
        self._table = table
        empty = range(0)
        self._entries = table.layout.table if table and table.layout.table_bar == bar.index else empty
        self._pending = table.layout.pending if table and table.layout.pending_bar == bar.index else empty

    def read(self, offset: int, size: int) -> bytes:
        """Read as the guest does: all ones if the device does not answer."""
        self.reads += 1
        if self._table is not None and _inside(self._entries, offset, size):
            return self._table.read(offset - self._entries.start, size)
        for region in self._relayed:
            if region.covers(offset, size):
                data = region.read(offset, size)
                if data is not None:
                    return data
                break
        data = self.peer.read(self.bar.index, offset, size)
        if self._table is not None and _inside(self._pending, offset, size):
            return self._table.pending(offset - self._pending.start, data)
        return data

    def write(self, offset: int, data: bytes) -> None:
        """Write as the guest does: lost if the device does not take it."""
        self.writes += 1
        count = self._counts.get(offset)
        if count is not None:
            count.exits += 1
            shadow = self._shadows.get((offset, len(data)))
            if shadow is not None:
                shadow.ring(data)
                return
        if self._table is not None and _inside(self._entries, offset, len(data)):
            with self.peer.lock:
                self._table.write(offset - self._entries.start, data)
            return
        for region in self._relayed:
            if region.covers(offset, len(data)):
                if region.write(offset, data):
                    return
                break
        self.peer.write(self.bar.index, offset, data, posted=self._posted)


def _inside(extent: range, offset: int, size: int) -> bool:
    return extent.start <= offset and offset + size <= extent.stop
