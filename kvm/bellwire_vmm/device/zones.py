"""Parts of a device's BARs whose writes may wait for the next exit: checks which can, and registers them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

from bellwire_vmm.device.bars import Bar
from bellwire_vmm.device.description import Description
from bellwire_vmm.device.rom import Rom
from bellwire_vmm.errors import ZoneRefusedError
from bellwire_vmm.machine.coalescing import Coalescing, Stretch, Taker
from kvm_ioctls import KvmError
from vfio_user import Client

_log = logging.getLogger(__name__)


class Zone(NamedTuple):
    """``size`` bytes at ``offset`` of memory BAR ``bar``, whose writes may wait for the next exit."""

    bar: int
    offset: int
    size: int

    @property
    def extent(self) -> range:
        """The zone's bytes within the BAR."""
        return range(self.offset, self.offset + self.size)

    def __str__(self) -> str:
        return f"BAR{self.bar}+{self.offset:#x}, {self.size:#x} bytes"


class Zones:
    """One device's zones, which follow their BARs. Raises ZoneRefusedError for a zone whose writes cannot wait."""

    def __init__(
        self, coalescing: Coalescing, about: Description, client: Client, wanted: Iterable[tuple[int, int, int]]
    ) -> None:
        self._coalescing = coalescing
        self._zones = [Zone(*zone) for zone in wanted]
        self._placed: dict[Zone, Stretch] = {}
        for zone in self._zones:
            for why in _objections(zone, about):
                raise ZoneRefusedError(f"{zone}: {why}")
        for one, other in combinations(self._zones, 2):
            if one.bar == other.bar and _overlap(one.extent, other.extent):
                raise ZoneRefusedError(f"{other}: it overlaps the zone {one}")
        if self._zones and not client.most_writes:
            raise ZoneRefusedError("the server has not agreed to write_multiple, which delivers writes that waited")
        if self._zones and not coalescing.available:
            raise ZoneRefusedError("this kernel lets no writes wait (KVM_CAP_COALESCED_MMIO)")

    def attach(self, bar: Bar, taker: Taker) -> None:
        """Register the zones of ``bar``, which is mapped now. Writes to a zone that KVM refuses exit as usual."""
        base = bar.address
        for zone in self._zones:
            if zone.bar == bar.index and zone not in self._placed:
                stretch = Stretch(base + zone.offset, base + zone.offset + zone.size, base, taker)
                try:
                    self._coalescing.add(stretch)
                except KvmError as error:
                    _log.warning("writes to %s are not coalesced: %s", zone, error)
                else:
                    self._placed[zone] = stretch

    def detach(self, bar: Bar) -> None:
        """Remove the zones of ``bar``, and deliver the waiting writes: it will no longer be mapped."""
        for zone in self._zones:
            if zone.bar == bar.index and zone in self._placed:
                self._coalescing.remove(self._placed.pop(zone))


def _objections(zone: Zone, about: Description) -> Iterator[str]:
    """Why writes to this part of a device cannot wait."""
    bar = about.bars.get(zone.bar)
    if bar is None or bar.ports or isinstance(bar, Rom):
        yield "the device has no such memory BAR"
    elif zone.offset < 0 or not 0 < zone.size < 1 << 32 or zone.extent.stop > bar.size:
        yield f"expected bytes of a BAR of {bar.size:#x}"
    if any(about.areas.values()):
        yield "the device has mmap areas, and a direct store would overtake a write that waits"
    for region in about.regions.get(zone.bar, ()):
        if _overlap(zone.extent, range(region.offset, region.offset + max(region.size, 1))):
            yield f"it overlaps the sub-region at {region.offset:#x}, which the device has handed over"
    if about.msix is not None:
        for index, extent in ((about.msix.table_bar, about.msix.table), (about.msix.pending_bar, about.msix.pending)):
            if zone.bar == index and _overlap(zone.extent, extent):
                yield "it overlaps the MSI-X table or its pending bits, which are the VMM's"


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop
