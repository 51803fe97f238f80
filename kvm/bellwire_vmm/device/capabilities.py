"""The PCI capabilities that the VMM handles (PCI 3.0 §6.7, §6.8; PCI Express 4.0 §7.5.3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

MSI, EXPRESS, MSIX = 0x05, 0x10, 0x11
_STATUS, _POINTER, _HAS_LIST = 0x06, 0x34, 0x10


def find(config: bytes) -> dict[int, int]:
    """The offset of each capability in 256 bytes of config space, keyed by its id. The first of a kind counts."""
    found: dict[int, int] = {}
    if not config[_STATUS] & _HAS_LIST:
        return found
    at = config[_POINTER] & 0xFC
    for _ in range(48):  # no more fit into config space: this ends a list that loops
        if at < 0x40:
            break
        found.setdefault(config[at], at)
        at = config[at + 1] & 0xFC
    return found


@dataclass(frozen=True, slots=True)
class Msi:
    """The MSI capability, decoded: Message Control and the fields behind it."""

    enabled: bool
    address: int
    data: int
    count: int
    mask: int

    @classmethod
    def unpack(cls, capability: bytes) -> Msi:
        """Decode the capability's bytes, at most 24."""
        control = int.from_bytes(capability[2:4], "little")
        wide, maskable = bool(control & 0x80), bool(control & 0x100)
        address = int.from_bytes(capability[4 : 12 if wide else 8], "little")
        at = 12 if wide else 8
        data = int.from_bytes(capability[at : at + 2], "little")
        mask = int.from_bytes(capability[at + 4 : at + 8], "little") if maskable else 0
        return cls(bool(control & 1), address & ~3, data, 1 << (control >> 4 & 7), mask)

    @staticmethod
    def size(control: int) -> int:
        """The capability's size in bytes, for a value of Message Control."""
        return (14 if control & 0x80 else 10) + (10 if control & 0x100 else 0)


class MsixCapability(NamedTuple):
    """The MSI-X capability: where the table and the pending bits lie, and how many vectors there are."""

    vectors: int
    table_bar: int
    table: range
    pending_bar: int
    pending: range

    @classmethod
    def unpack(cls, capability: bytes) -> MsixCapability:
        """Decode the capability's 12 bytes."""
        control, table, pending = struct.unpack_from("<HII", capability, 2)
        vectors = (control & 0x7FF) + 1
        start, pending_start = table & ~7, pending & ~7
        pending_end = pending_start + 8 * -(-vectors // 64)
        return cls(
            vectors,
            table & 7,
            range(start, start + 16 * vectors),
            pending & 7,
            range(pending_start, pending_end),
        )
