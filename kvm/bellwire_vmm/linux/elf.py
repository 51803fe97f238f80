"""A vmlinux: the uncompressed kernel as an ELF file, entered as PVH specifies.

ELF: System V ABI, chapter 5; the note: Xen, public/elfnote.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

from bellwire_vmm.errors import GuestImageError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_IDENTITY = b"\x7fELF\x02\x01\x01"  # 64 bits, little endian, version 1
_X86_64 = 62
_LOAD, _NOTES = 1, 4
_PHYS32_ENTRY = 18
_LOWEST = 1 << 20


class Part(NamedTuple):
    """``data`` goes to ``address``. Memory behind it up to ``end`` belongs to the segment, and is zero."""

    address: int
    data: memoryview
    end: int


@dataclass(frozen=True, slots=True)
class Vmlinux:
    """The segments to load, and the address of the ``entry`` in 32-bit protected mode."""

    parts: tuple[Part, ...]
    entry: int

    @property
    def end(self) -> int:
        """The first address above the kernel."""
        return max(part.end for part in self.parts)

    @classmethod
    def matches(cls, image: bytes) -> bool:
        """Whether ``data`` looks like an ELF file."""
        return image.startswith(b"\x7fELF")

    @classmethod
    def unpack(cls, image: bytes) -> Self:
        """Decode a file's bytes. Raises GuestImageError, which says what is wrong with them."""
        if len(image) < _HEADER.size or not image.startswith(_IDENTITY):
            raise GuestImageError("the kernel is no ELF file of 64 bits")
        _, _, machine, _, _, table, _, _, _, entry_size, count, *_ = _HEADER.unpack_from(image)
        if machine != _X86_64:
            raise GuestImageError(f"the kernel is for ELF machine {machine}: expected {_X86_64}, x86-64")
        if entry_size != _PROGRAM.size or table + count * entry_size > len(image):
            raise GuestImageError(f"the kernel's table of {count} program headers at {table:#x} lies outside its file")
        parts, entry = [], None
        for number in range(count):
            kind, _, offset, _, address, size, memory, _ = _PROGRAM.unpack_from(image, table + number * entry_size)
            if kind not in (_LOAD, _NOTES):
                continue
            if offset + size > len(image):
                raise GuestImageError(f"segment {number} of the kernel lies outside its file of {len(image):#x} bytes")
            content = memoryview(image)[offset : offset + size]
            if kind == _NOTES:
                entry = _pvh_entry(content) or entry
            elif memory:
                if size > memory or not _LOWEST <= address <= address + memory < 1 << 32:
                    where = f"{memory:#x} bytes at {address:#x}"
                    raise GuestImageError(f"segment {number} of the kernel wants {where}: expected 1 MiB to 4 GiB")
                parts.append(Part(address, content, address + memory))
        if entry is None:
            raise GuestImageError("the kernel has no PVH entry point (CONFIG_PVH); give its bzImage")
        if not any(part.address <= entry < part.end for part in parts):
            raise GuestImageError(f"the kernel's entry point {entry:#x} lies in none of its segments")
        return cls(tuple(parts), entry)


def _pvh_entry(notes: memoryview) -> int | None:
    for name, kind, description in _notes(notes):
        if name == b"Xen\0" and kind == _PHYS32_ENTRY and len(description) in (4, 8):
            return int.from_bytes(description, "little")
    return None


def _notes(notes: memoryview) -> Iterator[tuple[bytes, int, bytes]]:
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        name = at + _NOTE.size
        description = name + -(-name_size // 4) * 4
        yield bytes(notes[name : name + name_size]), kind, bytes(notes[description : description + size])
        at = description + -(-size // 4) * 4
