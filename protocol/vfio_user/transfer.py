"""Moving bytes: REGION_READ, REGION_WRITE, REGION_WRITE_MULTI, DMA_READ and DMA_WRITE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from vfio_user.errors import ProtocolError
from vfio_user.fields import Fields

REGION_ACCESS = Fields("<QII", "offset region count")
DMA_ACCESS = Fields("<QQ", "address count")
DRAFT_DMA_ACCESS = Fields("<QI", "address count")
MULTI = Fields("<Q", "wr_cnt")
MULTI_ENTRY = Fields("<QII8s", "offset region count data")
MULTI_LARGEST = 8


@dataclass(frozen=True, slots=True)
class RegionAccess:
    """The head of REGION_READ and REGION_WRITE: ``count`` bytes at ``offset`` of a region."""

    offset: int
    region: int
    count: int

    def pack(self) -> bytes:
        """16 bytes; the data of a write, or of a read's reply, follows them."""
        return REGION_ACCESS.pack(self.offset, self.region, self.count)

    @classmethod
    def unpack(cls, payload: memoryview, name: str) -> RegionAccess:
        """From the start of a message called ``name``."""
        if len(payload) < REGION_ACCESS.size:
            raise ProtocolError(f"{name}: {len(payload)} bytes, expected at least {REGION_ACCESS.size}")
        return cls(*REGION_ACCESS.unpack_from(payload))


@dataclass(frozen=True, slots=True)
class DmaAccess:
    """The head of DMA_READ and DMA_WRITE: ``count`` bytes of guest memory at ``address``."""

    LAYOUT: ClassVar[Fields] = DMA_ACCESS

    address: int
    count: int

    def pack(self) -> bytes:
        """The head's bytes; the data of a write, or of a read's reply, follows them."""
        return self.LAYOUT.pack(self.address, self.count)

    def acknowledgement(self) -> bytes:
        """The payload of the reply to a DMA_WRITE."""
        return self.pack()

    def acknowledged_by(self, payload: memoryview) -> bool:
        """Whether ``payload`` is that of the reply to this DMA_WRITE. Raises ProtocolError if it is too short."""
        return type(self).unpack(payload, "DMA_WRITE reply") == self

    @classmethod
    def unpack(cls, payload: memoryview, name: str) -> Self:
        """From the start of a message called ``name``."""
        if len(payload) < cls.LAYOUT.size:
            raise ProtocolError(f"{name}: {len(payload)} bytes, expected at least {cls.LAYOUT.size}")
        return cls(*cls.LAYOUT.unpack_from(payload))


@dataclass(frozen=True, slots=True)
class DraftDmaAccess(DmaAccess):
    """The same in the draft of January 2021: the count has 32 bits. The reply to a write has count 0."""

    LAYOUT: ClassVar[Fields] = DRAFT_DMA_ACCESS

    def acknowledgement(self) -> bytes:
        """The address, and count 0."""
        return self.LAYOUT.pack(self.address, 0)

    def acknowledged_by(self, payload: memoryview) -> bool:
        """As in :class:`DmaAccess`. Clients of that time may send the bare header, or the count."""
        if not payload:
            return True
        found = type(self).unpack(payload, "DMA_WRITE reply")
        return found.address == self.address and found.count in (0, self.count)


class RegionWrite(NamedTuple):
    """One write of REGION_WRITE_MULTI, of at most 8 bytes."""

    region: int
    offset: int
    data: bytes | memoryview


def pack_writes(writes: Sequence[RegionWrite]) -> bytes:
    """The payload of a REGION_WRITE_MULTI request. Raises ProtocolError for a write of 0 or more than 8 bytes."""
    payload = bytearray(MULTI.pack(len(writes)))
    for region, offset, data in writes:
        octets = bytes(data)
        if not 1 <= len(octets) <= MULTI_LARGEST:
            raise ProtocolError(f"REGION_WRITE_MULTI: a write of {len(octets)} bytes, expected 1 to {MULTI_LARGEST}")
        payload += MULTI_ENTRY.pack(offset, region, len(octets), octets)
    return bytes(payload)


def unpack_writes(payload: memoryview) -> list[RegionWrite]:
    """The writes in a request, with every count checked. Raises ProtocolError, naming the entry."""
    name = "REGION_WRITE_MULTI"
    if len(payload) < MULTI.size:
        raise ProtocolError(f"{name}: {len(payload)} bytes, expected at least {MULTI.size}")
    (count,) = MULTI.unpack_from(payload)
    if len(payload) - MULTI.size != count * MULTI_ENTRY.size:
        raise ProtocolError(f"{name}: wr_cnt {count}, but {len(payload) - MULTI.size} bytes of entries came")
    writes = []
    for number, (offset, region, size, data) in enumerate(MULTI_ENTRY.iter_unpack(payload[MULTI.size :])):
        if not 1 <= size <= MULTI_LARGEST:
            raise ProtocolError(f"{name}: entry {number}: count {size}, expected 1 to {MULTI_LARGEST}")
        writes.append(RegionWrite(region, offset, data[:size]))
    return writes
