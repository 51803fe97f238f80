"""What a device says about itself when it is plugged in. Everything is checked before it is used."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise

from bellwire_vmm.device import capabilities
from bellwire_vmm.device.areas import MappedArea, outside
from bellwire_vmm.device.bars import BARS, FIRST_BAR, Bar
from bellwire_vmm.device.capabilities import MsixCapability
from bellwire_vmm.device.registrations import descriptors
from bellwire_vmm.device.rom import Rom
from bellwire_vmm.errors import DeviceRefusedError
from bellwire_vmm.machine.slots import MemorySlots
from vfio_user import Client, DeviceFlags, RegionFlags, RegionIndex, RegionInfo, RemoteError, SubRegion

_PIN = 0x3D


@dataclass(slots=True)
class Description:
    """The description of one device. Its taker owns the areas and the fds of the sub-regions, and closes them."""

    config: bytes
    resettable: bool
    capabilities: dict[int, int]
    msix: MsixCapability | None
    bars: dict[int, Bar] = field(default_factory=dict)
    regions: dict[int, list[SubRegion]] = field(default_factory=dict)
    areas: dict[int, list[MappedArea]] = field(default_factory=dict)

    @property
    def vendor(self) -> int:
        """The Vendor ID of config space."""
        return int.from_bytes(self.config[0:2], "little")

    @property
    def device(self) -> int:
        """The Device ID of config space."""
        return int.from_bytes(self.config[2:4], "little")

    @property
    def identity(self) -> dict[str, object]:
        """What another device must have in common with this one to go on with its state, in values that JSON knows."""
        msix = self.msix
        return {
            "id": f"{self.vendor:04x}:{self.device:04x}",
            "class and revision": self.config[8:12].hex(),
            "subsystem": self.config[0x2C:0x30].hex(),
            "bars": {str(index): [bar.size, bar.ports, bar.wide] for index, bar in self.bars.items()},
            "capabilities": {str(kind): at for kind, at in self.capabilities.items()},
            "msix": [msix.vectors, msix.table_bar, msix.table.start] if msix else [],
            "pin": self.pin,
        }

    @property
    def pin(self) -> int:
        """The Interrupt Pin register: 1-4 for INTA-D, 0 for none."""
        return self.config[_PIN] if self.config[_PIN] <= 4 else 0


def describe(client: Client, slots: MemorySlots) -> Description:
    """Reset the device behind ``client``, if it supports that, and query it.

    Raises DeviceRefusedError if its answers contradict each other or do not fit a PCI device.
    """
    info = client.device_info()
    if not info.flags & DeviceFlags.PCI:
        raise DeviceRefusedError(f"not a PCI device (flags {info.flags!r})")
    resettable = bool(info.flags & DeviceFlags.RESET)
    if resettable:
        client.reset()
    config = client.read(RegionIndex.CONFIG, 0, 256)
    found = capabilities.find(config)
    at = found.get(capabilities.MSIX)
    msix = None if at is None or at > 256 - 12 else MsixCapability.unpack(config[at : at + 12])
    description = Description(config, resettable, found, msix)
    with ExitStack() as on_failure:
        upper_half = -1
        for index in range(BARS):
            bar = _bar(client, description, slots, index, on_failure) if index != upper_half else None
            upper_half = index + 1 if bar is not None and bar.wide else -1
        _find_rom(client, description)
        _check_table(description)
        on_failure.pop_all()
    return description


def _bar(client: Client, description: Description, slots: MemorySlots, index: int, on_failure: ExitStack) -> Bar | None:
    info, fd = client.region_info(index)
    with ExitStack() as stack:
        if fd is not None:
            stack.callback(os.close, fd)
        if not info.size:
            return None
        at = FIRST_BAR + 4 * index
        bar = Bar(index, info.size, int.from_bytes(description.config[at : at + 4], "little"))
        description.bars[index] = bar
        try:
            regions = client.io_fds(index)
        except RemoteError:
            regions = []  # the server does not know the command
        description.regions[index] = regions
        for each in descriptors(regions):
            on_failure.callback(os.close, each)
        description.areas[index] = []
        if fd is not None and not bar.ports:
            for extent in outside(_mappable(info), _traps(description, bar)):
                area = MappedArea(slots, fd, info.offset + extent.start, extent)
                on_failure.callback(area.close)
                description.areas[index].append(area)
    return bar


def _find_rom(client: Client, description: Description) -> None:
    info, fd = client.region_info(RegionIndex.ROM)
    if fd is not None:
        os.close(fd)
    if info.size and info.flags & RegionFlags.READ:
        description.bars[RegionIndex.ROM] = Rom(info.size)


def _mappable(info: RegionInfo) -> list[range]:
    """The parts of a region that may be mapped: the listed areas, or all of it if none are listed."""
    if not info.flags & RegionFlags.MMAP or not info.flags & RegionFlags.WRITE:
        return []
    listed = [range(area.offset, area.offset + area.size) for area in info.areas] or [range(info.size)]
    listed.sort(key=lambda extent: extent.start)
    for extent, following in pairwise([*listed, range(info.size, info.size)]):
        if extent.stop > following.start:
            raise DeviceRefusedError(f"region {info.index}: its mmap area {extent} reaches beyond {following.start:#x}")
    return listed


def _traps(description: Description, bar: Bar) -> list[range]:
    """The parts of a BAR that must be trapped, and so must not lie in a memory slot."""
    msix = description.msix
    regions = description.regions[bar.index]
    traps = [range(region.offset, region.offset + region.size) for region in regions]
    if msix is not None and msix.table_bar == bar.index:
        traps.append(msix.table)
    if msix is not None and msix.pending_bar == bar.index:
        traps.append(msix.pending)
    return traps


def _check_table(description: Description) -> None:
    msix = description.msix
    if msix is None:
        return
    parts = (("table", msix.table_bar, msix.table), ("pending bits", msix.pending_bar, msix.pending))
    for what, index, extent in parts:
        bar = description.bars.get(index)
        if bar is None or bar.ports or extent.stop > bar.size:
            where = f"BAR{index}+{extent.start:#x}"
            raise DeviceRefusedError(f"the MSI-X {what} of the device at {where} lies in no memory BAR")
