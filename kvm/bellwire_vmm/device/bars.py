"""A base address register as the guest programs it (PCI 3.0 §6.2.5.1)."""

from __future__ import annotations

from bellwire_vmm.errors import DeviceRefusedError
from bellwire_vmm.machine.windows import ADDRESS_LIMIT

FIRST_BAR, BARS = 0x10, 6
_PORTS, _WIDE, _PREFETCHABLE = 1, 4, 8


class Bar:
    """BAR ``index`` of ``size`` bytes. ``address`` is what the guest wrote, low bits clear; 0 after reset."""

    def __init__(self, index: int, size: int, flags: int) -> None:
        self.index = index
        self.size = size
        self.ports = bool(flags & _PORTS)
        self.wide = not self.ports and flags & 6 == _WIDE
        self.prefetchable = not self.ports and bool(flags & _PREFETCHABLE)
        self.address = 0
        self._flags = flags & (3 if self.ports else 15)
        least = 4 if self.ports else 16
        if size < least or size & (size - 1):
            raise DeviceRefusedError(f"BAR{index} has {size:#x} bytes: expected a power of two from {least} on")
        if self.wide and index == BARS - 1:
            raise DeviceRefusedError(f"BAR{index} is 64 bits wide: there is no register for its upper half")
        if size > (0x1_0000 if self.ports else ADDRESS_LIMIT >> 1 if self.wide else 1 << 31):
            raise DeviceRefusedError(f"BAR{index} has {size:#x} bytes: no guest of ours has so many addresses")

    @property
    def register(self) -> range:
        """The register's bytes in config space: four, or eight for a 64-bit BAR."""
        start = FIRST_BAR + 4 * self.index
        return range(start, start + (8 if self.wide else 4))

    def content(self) -> bytes:
        """The bytes that the guest reads from the register."""
        return (self.address | self._flags).to_bytes(len(self.register), "little")

    def write(self, offset: int, value: int) -> None:
        """Write one byte at config space ``offset``. Address bits below the BAR's size stay zero."""
        shift = 8 * (offset - self.register.start)
        self.address = (self.address & ~(0xFF << shift) | value << shift) & ~(self.size - 1)

    def forget(self) -> None:
        """Return to the state after a reset: no address."""
        self.address = 0

    def decodable(self, ram: int) -> bool:
        """Whether the BAR can be mapped at its address: not over RAM or an interrupt controller, and within reach.

        A guest that sizes a BAR writes all ones; the BAR is not mapped at that address either.
        """
        end = self.address + self.size
        if self.ports:
            return self.address > 0 and end <= 0x1_0000
        in_hole = self.address < 1 << 32 and end > 0xFEC0_0000
        return self.address >= ram and not in_hole and end <= ADDRESS_LIMIT
