"""LTR: the longest latency that the platform may cause (§7.8.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from bellwire.declare.capability import ExtendedCapability

if TYPE_CHECKING:
    from bellwire.declare.register import Register
    from bellwire.device import PciDevice
    from bellwire.model.capabilities import Template
    from bellwire.model.core import Core

_VALUE, _SCALE = 0x3FF, 10
_WRITABLE = 0x1FFF
_EXPRESS, _CAPABILITIES_2, _CONTROL_2 = 0x10, 0x24, 0x28
_SUPPORTED, _ENABLE = 1 << 11, 1 << 10


class Ltr(ExtendedCapability):
    """``latency = Ltr()``: latency tolerance reporting. The guest's firmware writes two limits into it."""

    number = 0x18
    title = "latency tolerance reporting (LTR)"

    def __init__(self) -> None:
        super().__init__(8)
        self.max_snoop = self.own("max_snoop", 0x04, size=2, access="rw", writable=_WRITABLE)
        self.max_no_snoop = self.own("max_no_snoop", 0x06, size=2, access="rw", writable=_WRITABLE)

    def shape(self, space: Template) -> None:
        """Let Device Capabilities 2 and Device Control 2 of the PCI Express capability offer it too (§7.5.3.15)."""
        express = space.at[_EXPRESS]
        space.put(express + _CAPABILITIES_2, 4, _SUPPORTED)
        space.put(express + _CONTROL_2, 2, 0, _ENABLE)

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Ltr: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> Latencies: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Ltr | Latencies:
        return self if device is None else device.core.part(self)

    def part(self, core: Core) -> Latencies:
        """The limits that the guest has written."""
        return Latencies(self, core.state.registers[self])


class Latencies:
    """The limits that the guest has written, in nanoseconds; 0 if it has written none."""

    def __init__(self, declared: Ltr, content: memoryview) -> None:
        self._declared = declared
        self._content = content

    @property
    def snoop(self) -> int:
        """The longest latency of snooped requests, in nanoseconds."""
        return self._nanoseconds(self._declared.max_snoop)

    @property
    def no_snoop(self) -> int:
        """The longest latency of requests that are not snooped, in nanoseconds."""
        return self._nanoseconds(self._declared.max_no_snoop)

    def _nanoseconds(self, register: Register[int]) -> int:
        """A value of 10 bits, times 32 to the power of the scale (§7.8.2.2)."""
        word = register.load(self._content)
        return (word & _VALUE) << 5 * (word >> _SCALE)
