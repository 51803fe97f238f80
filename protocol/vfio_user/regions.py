"""Device and regions: DEVICE_GET_INFO and DEVICE_GET_REGION_INFO with its capabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from vfio_user.constants import DeviceFlags, RegionCapability, RegionFlags
from vfio_user.errors import ProtocolError
from vfio_user.fields import Fields

DEVICE = Fields("<IIII", "argsz flags num_regions num_irqs")
REGION = Fields("<IIIIQQ", "argsz flags index cap_offset size offset")
CAPABILITY = Fields("<HHI", "id version next")
SPARSE = Fields("<II", "nr_areas reserved")
AREA = Fields("<QQ", "offset size")
SPARSE_MMAP = int(RegionCapability.SPARSE_MMAP)
_MOST_CAPABILITIES = 64


class DeviceInfo(NamedTuple):
    """What DEVICE_GET_INFO answers: the device's flags, and how many regions and kinds of interrupt it has."""

    flags: DeviceFlags
    num_regions: int
    num_irqs: int

    def pack(self) -> bytes:
        """The reply's 16 bytes."""
        return DEVICE.pack(DEVICE.size, self.flags, self.num_regions, self.num_irqs)

    @classmethod
    def unpack(cls, payload: memoryview) -> DeviceInfo:
        """Decode a reply. Raises ProtocolError if it is too short."""
        if len(payload) < DEVICE.size:
            raise ProtocolError(f"DEVICE_GET_INFO reply: {len(payload)} bytes, expected {DEVICE.size}")
        _, flags, regions, irqs = DEVICE.unpack_from(payload)
        return cls(DeviceFlags(flags), regions, irqs)


class MmapArea(NamedTuple):
    """A range of a region that the client may map: bytes, with ``offset`` from the region's start."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """What DEVICE_GET_REGION_INFO answers. ``offset`` is where the region begins in its fd; sizes are in bytes.

    If a region has the flag MMAP and no ``areas``, the client may map all of it.
    """

    index: int
    flags: RegionFlags
    size: int
    offset: int = 0
    areas: tuple[MmapArea, ...] = ()

    def pack(self, argsz: int) -> bytes:
        """The reply's payload. If ``argsz`` is too small, only the struct, with the size that is needed."""
        if not self.areas:
            return REGION.pack(REGION.size, self.flags, self.index, 0, self.size, self.offset)
        need = REGION.size + CAPABILITY.size + SPARSE.size + AREA.size * len(self.areas)
        if argsz < need:
            return REGION.pack(need, self.flags, self.index, 0, self.size, self.offset)
        flags = self.flags | RegionFlags.CAPS
        return b"".join(
            [
                REGION.pack(need, flags, self.index, REGION.size, self.size, self.offset),
                CAPABILITY.pack(SPARSE_MMAP, 1, 0),
                SPARSE.pack(len(self.areas), 0),
                *(AREA.pack(*area) for area in self.areas),
            ]
        )

    @classmethod
    def unpack(cls, payload: memoryview) -> tuple[RegionInfo, int]:
        """The region in a reply, and the argsz that the whole reply needs. Raises ProtocolError, naming the field."""
        name = "DEVICE_GET_REGION_INFO reply"
        if len(payload) < REGION.size:
            raise ProtocolError(f"{name}: {len(payload)} bytes, expected at least {REGION.size}")
        argsz, flags, index, at, size, offset = REGION.unpack_from(payload)
        areas: tuple[MmapArea, ...] = ()
        if flags & RegionFlags.CAPS:
            areas = _areas(payload, at, size, name)
        return cls(index, RegionFlags(flags) & ~RegionFlags.CAPS, size, offset, areas), argsz


class Region(NamedTuple):
    """A region, and the fd behind the areas that can be mapped; None if there are none."""

    info: RegionInfo
    fd: int | None

    def unmapped(self) -> Region:
        """The same region without areas, for a client that takes no descriptors."""
        return Region(replace(self.info, flags=self.info.flags & ~RegionFlags.MMAP, offset=0, areas=()), None)


def _areas(payload: memoryview, at: int, size: int, name: str) -> tuple[MmapArea, ...]:
    """Find the sparse mmap areas in the chain of capabilities, and check them against the region."""
    for _ in range(_MOST_CAPABILITIES):
        if at == 0:
            return ()
        if at < REGION.size or at + CAPABILITY.size > len(payload):
            raise ProtocolError(f"{name}: capability at {at}, outside the {len(payload)} bytes")
        number, _version, following = CAPABILITY.unpack_from(payload, at)
        if number == SPARSE_MMAP:
            at += CAPABILITY.size
            if at + SPARSE.size > len(payload):
                raise ProtocolError(f"{name}: sparse mmap capability cut short")
            count, _ = SPARSE.unpack_from(payload, at)
            at += SPARSE.size
            if at + count * AREA.size > len(payload):
                raise ProtocolError(f"{name}: nr_areas {count} does not fit in {len(payload)} bytes")
            areas = tuple(MmapArea(*AREA.unpack_from(payload, at + i * AREA.size)) for i in range(count))
            for area in areas:
                if area.size == 0 or area.offset + area.size > size:
                    raise ProtocolError(f"{name}: area {area.offset:#x}+{area.size:#x} outside the region ({size:#x})")
            return areas
        at = following
    raise ProtocolError(f"{name}: more than {_MOST_CAPABILITIES} capabilities, or a circle")
