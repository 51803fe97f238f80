"""Kernels of a few instructions, in the files that Linux comes in."""

from __future__ import annotations

import struct

COM1, POWER, RESET, KEYBOARD = 0x3F8, 0x604, 0xCF9, 0x64
LOAD = 0x10_0000
SECTORS = 1
ENTRY_64 = 0x200
PVH_NOTE = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", LOAD)


def bzimage(
    code: bytes = b"\xf4", *, load: int = LOAD, init_size: int = 0x1_0000, version: int = 0x020F, flags: int = 1
) -> bytes:
    """A bzImage whose 64-bit entry is the first byte of ``code``."""
    system = bytes(ENTRY_64) + code
    system += bytes(-len(system) % 16)
    image = bytearray((SECTORS + 1) * 512)
    image[0x1F1] = SECTORS
    struct.pack_into("<I", image, 0x1F4, len(system) // 16)
    struct.pack_into("<H", image, 0x1FE, 0xAA55)
    image[0x200:0x202] = b"\xeb\x6a"  # a jump over the header: its end
    struct.pack_into("<4sH", image, 0x202, b"HdrS", version)
    struct.pack_into("<IIBBHI", image, 0x22C, 0x7FFF_FFFF, 0x20_0000, 1, 21, flags, 2047)
    struct.pack_into("<QI", image, 0x258, load, init_size)
    return bytes(image) + system


def vmlinux(
    code: bytes = b"\xf4", *, address: int = LOAD, size: int = 0x1000, note: bytes = PVH_NOTE, machine: int = 62
) -> bytes:
    """An ELF file with ``code`` at ``address`` in a segment of ``size`` bytes, and a note."""
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<16sHHIQQQIHHHHHH", identity, 2, machine, 1, address, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    at = 64 + 2 * 56
    load = struct.pack("<IIQQQQQQ", 1, 7, at, address, address, len(code), size, 0x1000)
    notes = struct.pack("<IIQQQQQQ", 4, 4, at + len(code), 0, 0, len(note), len(note), 4)
    return header + load + notes + code + note


def out(port: int, value: int, size: int = 1) -> bytes:
    """Write an I/O port; code for 64 and for 32 bits."""
    code = b"\x66\xba" + struct.pack("<H", port) + b"\xb8" + struct.pack("<I", value)
    return code + {1: b"\xee", 2: b"\x66\xef", 4: b"\xef"}[size]


def say(text: bytes) -> bytes:
    """Write to the serial port."""
    return b"".join(out(COM1, byte) for byte in text)


HANG = b"\xfa\xf4\xeb\xfc"
POWER_OFF = out(POWER, 0x3400, 2) + HANG
