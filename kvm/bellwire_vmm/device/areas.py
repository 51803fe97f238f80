"""Areas of a BAR that the guest accesses without an exit: the device's memory, as a KVM memory slot."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable

from bellwire_vmm.errors import DeviceRefusedError
from bellwire_vmm.machine.memory import PAGE
from bellwire_vmm.machine.slots import MemorySlots


def outside(areas: Iterable[range], traps: Iterable[range]) -> list[range]:
    """Remove the pages of ``traps`` from ``areas``.

    KVM traps no access to a writable slot, so the MSI-X table and doorbells must not lie in one.
    """
    left = list(areas)
    for trap in traps:
        start, stop = trap.start // PAGE * PAGE, -(-max(trap.stop, trap.start + 1) // PAGE) * PAGE
        pieces: list[range] = []
        for area in left:
            pieces += (range(area.start, min(area.stop, start)), range(max(area.start, stop), area.stop))
        left = [piece for piece in pieces if piece]
    return left


class MappedArea:
    """The bytes ``extent`` of a BAR, which are in ``fd`` from ``position`` on. The caller keeps the fd."""

    def __init__(self, slots: MemorySlots, fd: int, position: int, extent: range) -> None:
        self._slots = slots
        self._offset = extent.start
        self._slot: int | None = None
        if extent.start % PAGE or extent.stop % PAGE or position % PAGE:
            raise DeviceRefusedError(f"mmap area {extent} at {position:#x} of its file: expected whole pages")
        if os.fstat(fd).st_size < position + len(extent):
            raise DeviceRefusedError(f"mmap area {extent} reaches beyond the end of its file")
        try:
            self._bytes = mmap.mmap(fd, len(extent), offset=position)
            self._bytes.madvise(mmap.MADV_DONTDUMP)  # what drivers keep there is the guest's
        except OSError as error:
            raise DeviceRefusedError(f"mmap area {extent} cannot be mapped: {error.strerror}") from None
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(self._bytes)

    def attach(self, base: int) -> None:
        """Show the area to the guest: its BAR is at ``base`` now."""
        if self._slot is None and self._anchor is not None:
            host = ctypes.addressof(self._anchor)
            self._slot = self._slots.add(base + self._offset, len(self._bytes), host)

    def detach(self) -> None:
        """Remove the memory slot: the area's BAR no longer answers."""
        if self._slot is not None:
            self._slots.remove(self._slot)
            self._slot = None

    def close(self) -> None:
        """Unmap the device's memory."""
        self.detach()
        if self._anchor is not None:
            self._anchor = None
            self._bytes.close()
