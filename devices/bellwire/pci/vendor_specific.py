"""VSEC and DVSEC: capabilities whose contents a vendor's specification defines (§7.9.5, §7.9.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from bellwire.declare.capability import VendorRegisters

if TYPE_CHECKING:
    from bellwire.device import PciDevice

_REVISION, _LENGTH = 16, 20
_NOBODY = 0xFFFF


class Vsec(VendorRegisters):
    """``debug = Vsec(0x10, size=0x18)``: the vendor of the device has given it the ID 10h.

    ``size`` is in bytes, from the capability's start, and counts the 8 bytes of both headers. Registers are declared
    as those of a BAR, from offset 8 on: ``level = debug.reg(0x08)``. On an instance the capability is a memoryview of
    its ``size`` bytes.
    """

    number = 0x0B
    several = True
    title = "vendor-specific (VSEC)"
    first = 0x08

    def __init__(self, ident: int, *, size: int, revision: int = 0) -> None:
        super().__init__(size)
        self.ident, self.revision = ident, revision
        words = (ident & 0xFFFF) | (revision & 0xF) << _REVISION | (size & 0xFFF) << _LENGTH
        self.own("vsec_header", 0x04, reset=words)

    def check(self, where: str) -> None:
        """Refuse an ID, a revision or a size that the header cannot hold."""
        super().check(where)
        if not 0 <= self.ident <= 0xFFFF:
            self.refuse(where, f"the ID has 16 bits, not {self.ident:#x}")
        if not 0 <= self.revision <= 0xF:
            self.refuse(where, f"the revision has 4 bits, not {self.revision:#x}")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Vsec: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> memoryview: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Vsec | memoryview:
        return self if device is None else device.core.state.registers[self]


class Dvsec(VendorRegisters):
    """``cxl = Dvsec(0x1E98, 0x0000, size=0x3C)``: ``vendor``, which need not be the device's, has given it the ID 0.

    ``size`` is in bytes, from the capability's start, and counts the 10 bytes of the headers. Registers are declared
    from offset 0Ah on. On an instance the capability is a memoryview of its ``size`` bytes.
    """

    number = 0x23
    several = True
    title = "designated vendor-specific (DVSEC)"
    first = 0x0A

    def __init__(self, vendor: int, ident: int, *, size: int, revision: int = 0) -> None:
        super().__init__(size)
        self.vendor, self.ident, self.revision = vendor, ident, revision
        words = (vendor & 0xFFFF) | (revision & 0xF) << _REVISION | (size & 0xFFF) << _LENGTH
        self.own("dvsec_header1", 0x04, reset=words)
        self.own("dvsec_header2", 0x08, size=2, reset=ident & 0xFFFF)

    def check(self, where: str) -> None:
        """Refuse a vendor, an ID, a revision or a size that the headers cannot hold."""
        super().check(where)
        if not 0 <= self.vendor < _NOBODY:
            self.refuse(where, f"the vendor is 0 to {_NOBODY - 1:#x}, not {self.vendor:#x}")
        if not 0 <= self.ident <= 0xFFFF:
            self.refuse(where, f"the ID has 16 bits, not {self.ident:#x}")
        if not 0 <= self.revision <= 0xF:
            self.refuse(where, f"the revision has 4 bits, not {self.revision:#x}")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Dvsec: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> memoryview: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Dvsec | memoryview:
        return self if device is None else device.core.state.registers[self]
