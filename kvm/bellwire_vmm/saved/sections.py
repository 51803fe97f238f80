"""The form in which a machine's state travels: named sections of bytes, each with a checksum."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

from bellwire_vmm.errors import StateError

MOST_SECTIONS = 1024
LARGEST = 1 << 30
"""Bytes of all sections together: what devices send is most of it."""

_COUNT = struct.Struct("<I")
_SECTION = struct.Struct("<HIQ")  # length of the name, CRC-32 and length of the content; the name and content follow


def pack(sections: Mapping[str, bytes]) -> bytes:
    """Join sections. Raises StateError if they are too large to be read again."""
    parts = [_COUNT.pack(len(sections))]
    for name, content in sections.items():
        encoded = name.encode()
        parts += [_SECTION.pack(len(encoded), zlib.crc32(content), len(content)), encoded, content]
    total = sum(map(len, parts))
    if total > LARGEST:
        raise StateError(f"the machine's state has {total} bytes, at most {LARGEST} are allowed")
    return b"".join(parts)


def unpack(packed: bytes | bytearray | memoryview) -> dict[str, bytes]:
    """Undo `pack`. Raises StateError for bytes that it did not make."""
    data = memoryview(packed)
    if len(data) < _COUNT.size:
        raise StateError("the machine's state ends before its first section")
    (count,) = _COUNT.unpack_from(data)
    if count > MOST_SECTIONS:
        raise StateError(f"the machine's state has {count} sections, at most {MOST_SECTIONS} are expected")
    at, found = _COUNT.size, dict[str, bytes]()
    for number in range(count):
        if len(data) - at < _SECTION.size:
            raise StateError(f"the machine's state ends in section {number} of {count}")
        named, checksum, length = _SECTION.unpack_from(data, at)
        at += _SECTION.size
        if named + length > len(data) - at:
            raise StateError(f"the machine's state ends in section {number} of {count}")
        name = bytes(data[at : at + named]).decode("ascii", "backslashreplace")
        content = bytes(data[at + named : at + named + length])
        at += named + length
        if zlib.crc32(content) != checksum:
            raise StateError(f"section {name!r} of the machine's state is damaged: its checksum is wrong")
        if name in found:
            raise StateError(f"section {name!r} of the machine's state is there twice")
        found[name] = content
    if at != len(data):
        raise StateError(f"{len(data) - at} bytes follow the machine's state")
    return found
