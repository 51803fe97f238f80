"""Device Serial Number: 64 bits that no other device has (§7.9.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from bellwire.declare.capability import ExtendedCapability

if TYPE_CHECKING:
    from bellwire.device import PciDevice
    from bellwire.model.core import Core

_BITS = 64


class SerialNumber(ExtendedCapability):
    """``serial = SerialNumber(0x0242_57FF_FE00_0001)``: an EUI-64, 64 bits.

    On an instance it is the number. A device whose number is an option assigns it in ``reset()``.
    """

    number = 0x03
    title = "device serial number"

    def __init__(self, value: int) -> None:
        super().__init__(12)
        self.value = value
        self.words = self.own("words", 0x04, size=8, reset=value & (1 << _BITS) - 1)

    def check(self, where: str) -> None:
        """Refuse a number that does not fit in 64 bits."""
        if not 0 <= self.value < 1 << _BITS:
            self.refuse(where, f"a serial number has {_BITS} bits, {self.value:#x} has more")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> SerialNumber: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> int: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> SerialNumber | int:
        return self if device is None else self.words.load(device.core.state.registers[self])

    def __set__(self, device: PciDevice, value: int) -> None:
        if not 0 <= value < 1 << _BITS:
            raise ValueError(f"{self}: a serial number has {_BITS} bits, {value:#x} has more")
        self.words.store(device.core.state.registers[self], value)

    def part(self, core: Core) -> None:
        """Return None: the number is all there is."""
