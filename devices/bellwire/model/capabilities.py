"""Config space after power-on: identity, BARs, the capability list, and the bits that a guest may write.

Chapter numbers are of PCI Local Bus 3.0, PCI Express Base 4.0 and PCI Power Management 1.2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from bellwire.declare.bar import Bar
from bellwire.declare.layout import Layout
from bellwire.declare.link import TRAINED, Link
from bellwire.declare.power import STATE, Power
from bellwire.declare.vendor import HEADER, VendorCapability

CONVENTIONAL_SIZE = 256
EXPRESS_SIZE = 4096

COMMAND = 0x04
STATUS = 0x06
HEADER_TYPE = 0x0E
BAR0 = 0x10
SUBSYSTEM = 0x2C
ROM_BAR = 0x30
CAPABILITY_POINTER = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D
FIRST_CAPABILITY = 0x40

IO_ENABLE = 1 << 0
MEMORY_ENABLE = 1 << 1
BUS_MASTER = 1 << 2
SYSTEM_ERRORS = 1 << 8  # SERR# Enable
INTX_DISABLE = 1 << 10
MULTIFUNCTION = 1 << 7
ROM_ENABLE = 1 << 0
ROM_ADDRESS = 0xFFFF_F800
COMMAND_WRITABLE = IO_ENABLE | MEMORY_ENABLE | BUS_MASTER | 1 << 6 | SYSTEM_ERRORS | INTX_DISABLE
STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4
SIGNALED_SYSTEM_ERROR = 1 << 14

POWER_MANAGEMENT, MSI, VENDOR, EXPRESS, MSIX = 0x01, 0x05, 0x09, 0x10, 0x11
FUNCTION_LEVEL_RESET = 1 << 15
_FLR_CAPABLE = 1 << 28
_ROLE_BASED_ERRORS = 1 << 15
NO_SOFT_RESET = 1 << 3
_VERSION_2, _PORT_TYPE = 0x0002, 4
_TARGET_SPEED = 0x000F
DEVICE_CONTROL, DEVICE_STATUS = 0x08, 0x0A
ERRORS_DETECTED = 0x000F
FATAL_ERROR_DETECTED = 1 << 2
"""The bits of Device Status that say that an error was detected: correctable, non-fatal, fatal, unsupported request."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A device's identity (PCI 3.0 §6.2.1). ``class_code`` has 24 bits: base class, sub-class and interface."""

    vendor: int
    device: int
    class_code: int
    revision: int
    subsystem_vendor: int
    subsystem: int
    express: bool
    no_soft_reset: bool
    """Whether the device keeps its state when it returns from D3hot to D0 (PM 1.2 §3.2.4)."""


@dataclass(slots=True)
class Template:
    """Config space after reset: its bytes, the bits that a guest may write, and the offset of each capability."""

    content: bytearray
    writable: bytearray
    clears: bytearray
    """Has a one for each bit that a guest clears by writing a one (RW1C)."""
    sticky: bytearray
    """Has a one for each bit that keeps its value over a reset (PCIe 6.0 §7.4)."""
    at: dict[int, int] = field(default_factory=dict)
    vendor: dict[VendorCapability, int] = field(default_factory=dict)
    """The offset of the body of each vendor-specific capability."""
    power_states: frozenset[int] = frozenset({0, 3})

    def put(self, offset: int, size: int, value: int, writable: int = 0, clears: int = 0, sticky: int = 0) -> None:
        """Write ``value`` as a little-endian field of ``size`` bytes; the masks have its bits of each kind."""
        place = slice(offset, offset + size)
        self.content[place] = value.to_bytes(size, "little")
        self.writable[place] = writable.to_bytes(size, "little")
        self.clears[place] = clears.to_bytes(size, "little")
        self.sticky[place] = sticky.to_bytes(size, "little")

    def size_bar(self, bar: Bar, size: int) -> None:
        """Let a base address register say ``size`` bytes: address bits from the size up are writable (§6.2.5.1)."""
        kind = 0b1 if bar.io else (0b100 if bar.bits == 64 else 0) | (0b1000 if bar.prefetchable else 0)
        mask = ~(size - 1) & ((1 << bar.bits) - 1) & ~(0b11 if bar.io else 0b1111)
        self.put(BAR0 + 4 * bar.index, bar.bits // 8, kind, mask)


def template(identity: Identity, layout: Layout, rom_size: int = 0, *, multifunction: bool = False) -> Template:
    """Build the config space of a device with ``identity`` and ``layout``, whose ROM has ``rom_size`` bytes.

    ``multifunction`` says that it is one of several functions.
    """
    size = EXPRESS_SIZE if identity.express else CONVENTIONAL_SIZE
    space = Template(bytearray(size), bytearray(size), bytearray(size), bytearray(size))
    struct.pack_into("<HH", space.content, 0, identity.vendor, identity.device)
    space.put(COMMAND, 2, 0, COMMAND_WRITABLE)
    space.put(STATUS, 2, STATUS_CAPABILITIES, clears=SIGNALED_SYSTEM_ERROR)
    space.put(0x08, 4, identity.class_code << 8 | identity.revision)
    space.put(0x0C, 1, 0, 0xFF)  # cache line size: a scratch byte on PCI Express, a hint on PCI
    space.put(HEADER_TYPE, 1, MULTIFUNCTION if multifunction else 0)
    for plan in layout.bars.values():
        space.size_bar(plan.bar, plan.bar.size)
    if rom_size:  # §6.2.5.2
        space.put(ROM_BAR, 4, 0, ~(rom_size - 1) & ROM_ADDRESS | ROM_ENABLE)
    space.put(SUBSYSTEM, 4, identity.subsystem << 16 | identity.subsystem_vendor)
    space.put(INTERRUPT_LINE, 1, 0xFF, 0xFF)
    space.put(INTERRUPT_PIN, 1, layout.intx.pin if layout.intx else 0)
    if layout.power is not None:
        space.power_states = frozenset(layout.power.states)
    _capabilities(space, identity, layout)
    if identity.express:
        _extended(space, layout)
    return space


def _capabilities(space: Template, identity: Identity, layout: Layout) -> None:
    """The capability list (§6.7): each capability starts on a dword and points to the next one."""
    link = CAPABILITY_POINTER
    offset = FIRST_CAPABILITY
    for what, body in _bodies(identity, layout):
        space.put(link, 1, offset)
        if isinstance(what, VendorCapability):
            space.put(offset, 1, VENDOR)
            space.vendor[what] = offset + HEADER
        else:
            space.put(offset, 1, what)
            space.at[what] = offset
        link = offset + 1
        position = offset + 2
        for each in body:
            space.put(position, *each)
            position += each.size
        offset = -(-position // 4) * 4


def _extended(space: Template, layout: Layout) -> None:
    """Extended capabilities (PCIe 6.0 §7.6): their registers apply their own access words, so no bit is writable."""
    for each in layout.extended:
        space.put(each.at, 4, each.header)
        for register in each.placed:
            sticky = (1 << 8 * register.size) - 1 if register.sticky else 0
            space.put(each.at + register.offset, register.size, register.reset, sticky=sticky)
        each.capability.shape(space)


class _Field(NamedTuple):
    """A field of a capability: ``size`` in bytes, its value after reset, and its bits of each kind."""

    size: int
    value: int
    writable: int = 0
    clears: int = 0
    sticky: int = 0


_Fields = list[_Field]


def _bodies(identity: Identity, layout: Layout) -> list[tuple[int | VendorCapability, _Fields]]:
    """The number of each capability, and its fields."""
    found: list[tuple[int | VendorCapability, _Fields]] = [(POWER_MANAGEMENT, _power(identity, layout.power))]
    if layout.msi is not None:  # §6.8.1, 64-bit address, no per-vector mask
        capable = (layout.msi.count.bit_length() - 1) << 1
        found.append(
            (
                MSI,
                [
                    _Field(2, 0x0080 | capable, 0x0071),
                    _Field(4, 0, 0xFFFF_FFFC),
                    _Field(4, 0, 0xFFFF_FFFF),
                    _Field(2, 0, 0xFFFF),
                ],
            )
        )
    if layout.msix is not None:  # §6.8.2
        table = layout.msix.offset | layout.msix_bar
        pending = (layout.msix.offset + layout.msix.pba_offset) | layout.msix_bar
        found.append((MSIX, [_Field(2, layout.msix.count - 1, 0xC000), _Field(4, table), _Field(4, pending)]))
    if identity.express:
        found.append((EXPRESS, _express(layout)))
    for vendor in layout.vendor:  # §6.7: the length of the whole, then what the device's own specification defines
        content = (_Field(1, value, writable) for value, writable in zip(vendor.body, vendor.writable, strict=True))
        found.append((vendor, [_Field(1, HEADER + vendor.size), *content]))
    return found


def _power(identity: Identity, power: Power | None) -> _Fields:
    """Power management (PM 1.2 §3.2): Capabilities, Control/Status, and the data register, which is not there."""
    power = power or Power()
    kept = NO_SOFT_RESET if identity.no_soft_reset else 0
    return [
        _Field(2, power.capabilities),
        _Field(2, kept, STATE | power.enable, power.status, power.sticky),
        _Field(2, 0),
    ]


def _express(layout: Layout) -> _Fields:
    """PCI Express (PCIe 4.0 §7.5.3): version 2, with function-level reset.

    An endpoint has no slot and no root registers. Without a declared link it has no second set of link registers.
    """
    declared = layout.link
    link = declared or Link()
    fields = [
        _Field(2, _VERSION_2 | link.port << _PORT_TYPE),
        _Field(4, _FLR_CAPABLE | _ROLE_BASED_ERRORS),
        _Field(2, 0x2810, 0x7FFF),
        _Field(2, 0, 0, ERRORS_DETECTED),
        _Field(4, link.capabilities),
        _Field(2, 0, 0x01FB if link.has_link else 0),
        _Field(2, link.status, sticky=TRAINED if declared else 0),  # a function-level reset trains no link (§6.6.2)
        _Field(16, 0),
    ]
    if declared is None:
        return [*fields, _Field(24, 0)]
    rate = _TARGET_SPEED if link.has_link else 0
    return [
        *fields,
        _Field(8, 0),
        _Field(4, declared.speeds),
        _Field(2, declared.target, rate, sticky=rate),
        _Field(2, 0),
        _Field(8, 0),
    ]
