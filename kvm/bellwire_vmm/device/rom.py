"""The expansion ROM of a device: the register that a guest programs, and what answers at its address."""

from __future__ import annotations

from bellwire_vmm.device.bars import Bar
from bellwire_vmm.device.peer import Peer
from bellwire_vmm.errors import DeviceRefusedError
from vfio_user import RegionIndex

_REGISTER = range(0x30, 0x34)
_SMALLEST, _LARGEST = 2 << 10, 16 << 20
_ENABLED = 1


class Rom(Bar):
    """The Expansion ROM Base Address register, for a ROM of ``size`` bytes (PCI 3.0 §6.2.5.2)."""

    def __init__(self, size: int) -> None:
        super().__init__(RegionIndex.ROM, size, 0)
        self.enabled = False
        """Whether the guest has enabled it: bit 0 of the register."""
        if not _SMALLEST <= size <= _LARGEST:
            raise DeviceRefusedError(f"the expansion ROM has {size:#x} bytes: expected 2 KiB to 16 MiB")

    @property
    def register(self) -> range:
        """The register's four bytes in config space."""
        return _REGISTER

    def content(self) -> bytes:
        """The bytes that the guest reads from the register."""
        return (self.address | self.enabled).to_bytes(4, "little")

    def write(self, offset: int, value: int) -> None:
        """Write one byte at config space ``offset``. Bit 0 lets the ROM answer at its address."""
        super().write(offset, value)
        if offset == _REGISTER.start:
            self.enabled = bool(value & _ENABLED)

    def forget(self) -> None:
        """Return to the state after a reset: no address, and not enabled."""
        super().forget()
        self.enabled = False

    def decodable(self, ram: int) -> bool:
        """Whether the ROM can be mapped at its address, and the guest has enabled it."""
        return self.enabled and super().decodable(ram)


class RomTarget:
    """Answers in place of the ROM, as `bus.Target`. ``reads`` and ``writes`` count the guest's accesses."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.reads = self.writes = 0

    def read(self, offset: int, size: int) -> bytes:
        """Read as the guest does: all ones if the device does not answer."""
        self.reads += 1
        return self.peer.read(RegionIndex.ROM, offset, size)

    def write(self, offset: int, data: bytes) -> None:
        """Drop the write: it is a ROM."""
        self.writes += 1
