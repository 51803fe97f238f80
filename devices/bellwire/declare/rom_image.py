"""The images in an expansion ROM, and what firmware expects of them (PCI Firmware 3.2 §5.1, PCI 3.0 §6.3.1)."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

UNIT = 512
SMALLEST, LARGEST = 2 << 10, 16 << 20
"""Bytes that an expansion ROM BAR can decode (PCI 3.0 §6.2.5.2)."""

_SIGNATURE = b"\x55\xaa"
_INITIAL_SIZE, _POINTER = 2, 0x18
_DATA = struct.Struct("<4sHHHHB3sHHBB")  # the PCI Data Structure, to the indicator
_LAST = 0x80


class CodeType(IntEnum):
    """What can run an image (PCI Firmware 3.2 §5.1.1)."""

    BIOS = 0
    OPEN_FIRMWARE = 1
    PA_RISC = 2
    EFI = 3


class RomImage(NamedTuple):
    """One image: where it lies in the ROM, in bytes, which code it has, and the device that it is for."""

    offset: int
    size: int
    code_type: int
    vendor: int
    device: int


class RomError(ValueError):
    """The bytes are no expansion ROM that firmware would accept. The text says at which offset, and why."""


def images(content: bytes) -> list[RomImage]:
    """The images in ``content``, in order. A RomError for the first one that firmware would skip.

    Bytes after the last image are allowed: they are padding.
    """
    if len(content) > LARGEST:
        raise RomError(f"it has {len(content)} bytes, and a ROM at most {LARGEST}")
    found: list[RomImage] = []
    at, last = 0, False
    while not last:
        image, last = _image(content, at)
        found.append(image)
        at += image.size
    return found


def padded(content: bytes, size: int) -> bytes:
    """``content`` with ones behind it, as in erased flash memory, to ``size`` bytes; 0: to the next size of a BAR."""
    return content.ljust(max(size, SMALLEST, 1 << (len(content) - 1).bit_length()), b"\xff")


def _image(content: bytes, at: int) -> tuple[RomImage, bool]:
    """The image at ``at``, and whether it says that it is the last one."""
    where = f"the image at {at:#x}"
    if content[at : at + 2] != _SIGNATURE:
        raise RomError(f"{where} begins with {content[at : at + 2].hex(' ') or 'nothing'}, expected 55 aa")
    if at + _POINTER + 2 > len(content):
        raise RomError(f"{where} ends before its header does")
    pointer = int.from_bytes(content[at + _POINTER : at + _POINTER + 2], "little")
    if pointer % 4 or pointer < _POINTER + 2 or at + pointer + _DATA.size > len(content):
        raise RomError(f"{where} has its PCI Data Structure at {pointer:#x}: expected a dword inside of it")
    name, vendor, device, _, length, _, _, units, _, code_type, indicator = _DATA.unpack_from(content, at + pointer)
    if name != b"PCIR":
        raise RomError(f"{where} has {name!r} at {pointer:#x}, expected PCIR")
    size = units * UNIT
    if length < _DATA.size or not pointer + length <= size <= len(content) - at:
        left = len(content) - at
        raise RomError(f"{where} says that it has {size} bytes, {length} of them at {pointer:#x}; there are {left}")
    if code_type == CodeType.BIOS:
        initial = content[at + _INITIAL_SIZE] * UNIT
        if not 0 < initial <= size:
            raise RomError(f"{where} says in byte 2 that {initial} of its {size} bytes are to be copied")
        total = sum(content[at : at + initial]) & 0xFF
        if total:
            raise RomError(f"the first {initial} bytes of {where} add up to {total:#04x}, and a BIOS expects zero")
    return RomImage(at, size, code_type, vendor, device), bool(indicator & _LAST)
