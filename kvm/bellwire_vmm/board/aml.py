"""ACPI's byte code (ACPI 6.4 §20.2), as far as a table of constants needs it, and resources (§6.4).

Each function returns the bytes of one term.
"""

from __future__ import annotations

import struct

_ZERO, _ONE, _NAME, _BYTE, _WORD, _DWORD, _STRING, _QWORD = 0x00, 0x01, 0x08, 0x0A, 0x0B, 0x0C, 0x0D, 0x0E
_SCOPE, _BUFFER, _PACKAGE, _EXTENDED, _DEVICE = 0x10, 0x11, 0x12, 0x5B, 0x82
_FIXED = 0x0C  # both ends of the range are as given; the bridge passes it on
MEMORY, PORTS, BUSES = 0, 1, 2
_TYPE_FLAGS = {MEMORY: 1, PORTS: 3, BUSES: 0}  # writable, not cached; the entire range; none


def integer(value: int) -> bytes:
    """An integer constant, in as few bytes as it needs."""
    if value in (0, 1):
        return bytes([_ONE if value else _ZERO])
    for prefix, form in ((_BYTE, "<BB"), (_WORD, "<BH"), (_DWORD, "<BI"), (_QWORD, "<BQ")):
        if value >> 8 * (struct.calcsize(form) - 1) == 0:
            return struct.pack(form, prefix, value)
    raise ValueError(f"{value:#x} has more than 64 bits")


def eisa_id(text: str) -> bytes:
    """A compressed identifier such as ``PNP0A03`` (§19.3.4)."""
    letters = sum((ord(letter) - 0x40) << shift for letter, shift in zip(text, (10, 5, 0), strict=False))
    return bytes([_DWORD]) + struct.pack(">HH", letters, int(text[3:], 16))


def package(*elements: bytes) -> bytes:
    """A list of terms."""
    return bytes([_PACKAGE]) + _sized(bytes([len(elements)]) + b"".join(elements))


def resources(*descriptors: bytes) -> bytes:
    """A buffer of resource descriptors, with the end tag."""
    content = b"".join(descriptors) + b"\x79\0"
    return bytes([_BUFFER]) + _sized(integer(len(content)) + content)


def name(segment: str, value: bytes) -> bytes:
    """A named constant."""
    return bytes([_NAME]) + _segment(segment) + value


def scope(segment: str, *terms: bytes) -> bytes:
    """A scope at the root: terms below ``name``."""
    return bytes([_SCOPE]) + _sized(b"\\" + _segment(segment) + b"".join(terms))


def device(segment: str, *terms: bytes) -> bytes:
    """A device and the terms in it."""
    return bytes([_EXTENDED, _DEVICE]) + _sized(_segment(segment) + b"".join(terms))


def window(kind: int, extent: range) -> bytes:
    """A range that a bridge passes on: ``BUSES``, ``PORTS`` or ``MEMORY``, in 16, 32 or 64 bits as it needs."""
    tag, form = (0x88, "<5H") if kind != MEMORY else (0x87, "<5I") if extent.stop <= 1 << 32 else (0x8A, "<5Q")
    body = bytes([kind, _FIXED, _TYPE_FLAGS[kind]])
    body += struct.pack(form, 0, extent.start, extent.stop - 1, 0, len(extent))
    return struct.pack("<BH", tag, len(body)) + body


def ports(start: int, count: int) -> bytes:
    """I/O ports that a device decodes."""
    return struct.pack("<BBHHBB", 0x47, 1, start, start, 1, count)


def line(number: int) -> bytes:
    """An interrupt line, as ISA devices have."""
    return struct.pack("<BH", 0x22, 1 << number)


def _segment(text: str) -> bytes:
    return text.ljust(4, "_").encode()


def _sized(content: bytes) -> bytes:
    """PkgLength: a length that includes its own bytes."""
    if len(content) + 1 < 1 << 6:
        return bytes([len(content) + 1]) + content
    for more in (1, 2, 3):
        size = len(content) + 1 + more
        if size < 1 << 4 + 8 * more:
            return bytes([more << 6 | size & 0xF]) + (size >> 4).to_bytes(more, "little") + content
    raise ValueError(f"{len(content):#x} bytes are too many for one term")
