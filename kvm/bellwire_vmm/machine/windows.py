"""Where BARs are placed: ranges of an address space, allocated first fit."""

from __future__ import annotations

from bellwire_vmm.errors import AddressConflictError

#: Above RAM, below the IOAPIC (0xfec0_0000) and the local APIC (0xfee0_0000).
LOW_MEMORY = range(0xC000_0000, 0xFEC0_0000)
#: For 64-bit BARs.
HIGH_MEMORY = range(1 << 39, 1 << 40)
PORTS = range(0xC000, 0x1_0000)

ADDRESS_LIMIT = 1 << 40
"""The least guest-physical width of x86-64 hosts is 40 bits."""


class Window:
    """One range. Sizes of blocks are powers of two, and each block is aligned to its size, as BARs must be."""

    def __init__(self, extent: range) -> None:
        self.extent = extent
        self._taken: dict[int, int] = {}

    def take(self, size: int) -> int:
        """Take ``size`` free bytes, and return their address. Raises AddressConflictError if there are none."""
        address = -(-self.extent.start // size) * size
        for start in sorted(self._taken):
            if address + size <= start:
                break
            address = max(address, -(-(start + self._taken[start]) // size) * size)
        if address + size > self.extent.stop:
            first, last = self.extent.start, self.extent.stop - 1
            raise AddressConflictError(f"no room for a BAR of {size:#x} bytes in {first:#x}-{last:#x}")
        self._taken[address] = size
        return address

    def give_back(self, address: int) -> None:
        """Free what `take` returned."""
        del self._taken[address]
