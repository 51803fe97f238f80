"""ACS: what a function of a multi-function device controls of accesses between functions (§7.7.11)."""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING, overload

from bellwire.declare.capability import ExtendedCapability

if TYPE_CHECKING:
    from bellwire.device import PciDevice
    from bellwire.model.core import Core


class AccessControl(IntFlag):
    """The controls of ACS that a function may have (§6.12.1.2): an endpoint has no others."""

    REQUEST_REDIRECT = 1 << 2
    COMPLETION_REDIRECT = 1 << 3
    DIRECT_TRANSLATED = 1 << 6


_ALL = AccessControl.REQUEST_REDIRECT | AccessControl.COMPLETION_REDIRECT | AccessControl.DIRECT_TRANSLATED


class Acs(ExtendedCapability):
    """``isolation = Acs()``: access control services. ``controls`` are those that the device has, by default none.

    A function that has the capability, and no control, says that it never accesses its sibling functions. Linux then
    puts it into an IOMMU group of its own.
    """

    number = 0x0D
    title = "ACS"

    def __init__(self, controls: AccessControl = AccessControl(0)) -> None:  # noqa: B008 a number, and never changed
        super().__init__(8)
        self.controls = controls
        self.able = self.own("capability", 0x04, size=2, reset=int(controls) & 0xFFFF)
        self.control = self.own("control", 0x06, size=2, access="rw", writable=int(controls) & 0xFFFF)

    def check(self, where: str) -> None:
        """Refuse controls that only ports have."""
        beyond = int(self.controls) & ~int(_ALL)
        if beyond:
            self.refuse(where, f"an endpoint has no control {beyond:#x}: {_ALL!r} are all (§6.12.1.2)")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Acs: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> AccessControl: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Acs | AccessControl:
        if device is None:
            return self
        return AccessControl(self.control.load(device.core.state.registers[self]))

    def part(self, core: Core) -> None:
        """Return None: an instance has the controls that the guest has turned on."""
