"""The three ways a PCI device interrupts: MSI-X, MSI and the INTx line.

A declaration on the class says what the device has. The same attribute of an instance raises interrupts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from bellwire.declare.declared import Declared, is_power_of_two

if TYPE_CHECKING:
    from bellwire.declare.bar import Bar
    from bellwire.device import PciDevice
    from bellwire.model.signals import Line, Vectors

MSIX_MOST = 2048
MSI_MOST = 32
ENTRY = 16
PBA_WORD = 8


class MsiX(Declared):
    """``irq = MsiX(8)``: eight vectors, each ``self.irq[n].trigger()`` (PCI 3.0 §6.8.2).

    The SDK puts the table and the pending bits into a BAR of their own. ``bar`` and ``offset`` put them into one of the
    device's BARs instead: 16 bytes for each vector, then the pending bits at the next 8-byte boundary.
    """

    def __init__(self, count: int, *, bar: Bar | None = None, offset: int = 0) -> None:
        self.count = count
        self.bar = bar
        self.offset = offset

    @property
    def pba_offset(self) -> int:
        """Bytes from the start of the table to the pending bits."""
        return ENTRY * self.count

    @property
    def pba_size(self) -> int:
        """Bytes of pending bits: one bit for each vector, in 8-byte words."""
        return PBA_WORD * ((self.count + 63) // 64)

    @property
    def size(self) -> int:
        """Bytes of table and pending bits together."""
        return self.pba_offset + self.pba_size

    def check(self, where: str) -> None:
        """Refuse a number of vectors or a place that the MSI-X capability cannot express."""
        if not 1 <= self.count <= MSIX_MOST:
            self.refuse(where, f"MSI-X has 1 to {MSIX_MOST} vectors, not {self.count}")
        if self.bar is not None and self.bar.io:
            self.refuse(where, "its table lies in memory, not at I/O ports (PCI 3.0 §6.8.2)")
        if self.offset % PBA_WORD:
            self.refuse(where, f"offset {self.offset:#x} is no multiple of {PBA_WORD}")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> MsiX: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> Vectors: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> MsiX | Vectors:
        return self if device is None else device.core.signals.msix


class Msi(Declared):
    """``irq = Msi(1)``: 1, 2, 4 ... 32 messages, each ``self.irq[n].trigger()`` (PCI 3.0 §6.8.1)."""

    def __init__(self, count: int = 1) -> None:
        self.count = count

    def check(self, where: str) -> None:
        """Refuse a number of messages that the MSI capability cannot express."""
        if not is_power_of_two(self.count) or self.count > MSI_MOST:
            self.refuse(where, f"MSI has 1, 2, 4, 8, 16 or 32 messages, not {self.count}")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Msi: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> Vectors: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Msi | Vectors:
        return self if device is None else device.core.signals.msi


class IntX(Declared):
    """``line = IntX()``: the shared, level-triggered line (PCI 3.0 §2.2.6).

    Device code drives it by ``self.line.high()`` and ``self.line.low()``.
    """

    def __init__(self, pin: int = 1) -> None:
        self.pin = pin

    def check(self, where: str) -> None:
        """Refuse a pin other than INTA to INTD."""
        if not 1 <= self.pin <= 4:
            self.refuse(where, f"the pin is 1 (INTA) to 4 (INTD), not {self.pin}")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> IntX: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> Line: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> IntX | Line:
        return self if device is None else device.core.signals.line
