"""Which addresses are RAM, as firmware would report it ("e820", ACPI 6.4 §15)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

LEGACY_HOLE = range(0xA_0000, 0x10_0000)
"""The addresses where a PC has its screen and firmware. `acpi` puts its tables there."""

_EBDA = 0x9_FC00
_ENTRY = struct.Struct("<QQI")


class Kind(IntEnum):
    """What a range is for."""

    RAM = 1
    RESERVED = 2


class Stretch(NamedTuple):
    """``size`` bytes at ``address``."""

    address: int
    size: int
    kind: Kind


def memory_map(memory: int) -> list[Stretch]:
    """The map of a machine with ``memory`` bytes from address 0 on."""
    return [
        Stretch(0, _EBDA, Kind.RAM),
        Stretch(_EBDA, LEGACY_HOLE.start - _EBDA, Kind.RESERVED),
        Stretch(0xE_0000, 0x2_0000, Kind.RESERVED),
        Stretch(LEGACY_HOLE.stop, memory - LEGACY_HOLE.stop, Kind.RAM),
    ]


def pack(stretches: Iterable[Stretch], *, pad: int = 0) -> bytes:
    """The map as entries of 20 bytes, with ``pad`` zeros after each."""
    return b"".join(_ENTRY.pack(*stretch) + bytes(pad) for stretch in stretches)
