"""What the CPUID instruction tells a guest (api.rst 4.20, 4.46)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from .errors import InvalidArgumentError, IoctlError
from .ioctl import Ioctl, invoke
from .structs import Cpuid2

_ENTRY = struct.Struct("=7I12x")
_HEAD = ctypes.sizeof(Cpuid2)
_E2BIG = 7
_MOST_ENTRIES = 4096

SIGNIFICANT_INDEX = 1
"""KVM_CPUID_FLAG_SIGNIFCANT_INDEX: the entry answers for its `index` (ECX) only, not for all of its leaf."""


@dataclass(slots=True)
class CpuidEntry:
    """One leaf, or one subleaf: what EAX = `function`, ECX = `index` returns."""

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


class Cpuid:
    """A CPU's whole answer, in the kernel's order. Change `entries` as you like before `Vcpu.set_cpuid2`."""

    def __init__(self, entries: list[CpuidEntry]):
        self.entries = entries

    def __iter__(self) -> Iterator[CpuidEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def find(self, function: int, index: int = 0) -> CpuidEntry | None:
        """Return the entry that answers EAX = `function`, ECX = `index`, or None."""
        for entry in self.entries:
            whole_leaf = not entry.flags & SIGNIFICANT_INDEX
            if entry.function == function and (whole_leaf or entry.index == index):
                return entry
        return None

    def pack(self) -> bytes:
        """Return the bytes of `struct kvm_cpuid2` with its entries."""
        return b"".join((struct.pack("=I4x", len(self.entries)), *map(_packed, self.entries)))

    @classmethod
    def unpack(cls, data: bytes) -> Cpuid:
        """Return what `struct kvm_cpuid2` holds."""
        (count,) = struct.unpack_from("=I", data)
        entries = data[_HEAD : _HEAD + count * _ENTRY.size]
        return cls([CpuidEntry(*fields) for fields in _ENTRY.iter_unpack(entries)])

    @classmethod
    def fetch(cls, fd: int, request: Ioctl) -> Cpuid:
        """Make a request that fills in `struct kvm_cpuid2`, with as much room as it turns out to need."""
        room = 128
        while True:
            buffer = ctypes.create_string_buffer(struct.pack("=I4x", room), _HEAD + room * _ENTRY.size)
            try:
                invoke(fd, request, buffer, nent=room)
            except IoctlError as error:
                if error.errno != _E2BIG or room >= _MOST_ENTRIES:
                    raise
                room *= 2
            else:
                return cls.unpack(buffer.raw)


def _packed(entry: CpuidEntry) -> bytes:
    try:
        return _ENTRY.pack(entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx)
    except struct.error as error:
        raise InvalidArgumentError(str(error), "KVM_SET_CPUID2", asdict(entry)) from None
