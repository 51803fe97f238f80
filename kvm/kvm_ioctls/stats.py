"""The kernel's own counters of a VM or a vCPU (api.rst 4.133)."""

from __future__ import annotations

import os
import struct

from .handle import Handle

_HEADER = struct.Struct("=6I")
_DESCRIPTOR = struct.Struct("=IhHII")
_HISTOGRAMS = (3, 4)


class Stats(Handle):
    """Counters read without disturbing the guest: `exits`, `io_exits`, `mmio_exits`, `irq_injections`, ..."""

    def __init__(self, fd: int):
        super().__init__(fd)
        _flags, name_size, count, _id, descriptors, self._data = _HEADER.unpack(os.pread(fd, _HEADER.size, 0))
        step = _DESCRIPTOR.size + name_size
        table = os.pread(fd, count * step, descriptors)
        self._offsets: dict[str, int] = {}
        for start in range(0, len(table), step):
            flags, _exponent, size, offset, _bucket = _DESCRIPTOR.unpack_from(table, start)
            if size == 1 and flags & 0xF not in _HISTOGRAMS:
                name = table[start + _DESCRIPTOR.size : start + step].split(b"\0", 1)[0].decode()
                self._offsets[name] = offset
        self._size = max(self._offsets.values(), default=-8) + 8

    def read(self) -> dict[str, int]:
        """Return every counter by the kernel's name for it, as of now. Histograms are left out."""
        data = os.pread(self.fd, self._size, self._data)
        return {name: struct.unpack_from("=Q", data, offset)[0] for name, offset in self._offsets.items()}

    def __getitem__(self, name: str) -> int:
        """Return one counter; KeyError where this kernel does not count that."""
        (value,) = struct.unpack("=Q", os.pread(self.fd, 8, self._data + self._offsets[name]))
        return int(value)

    def __contains__(self, name: str) -> bool:
        return name in self._offsets
