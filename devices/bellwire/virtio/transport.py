"""The registers of every virtio device over PCI (§4.1.4), all in BAR0, and the capabilities that locate them."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any

from bellwire.declare.bar import Bar
from bellwire.declare.interrupts import IntX, MsiX
from bellwire.declare.register import Register
from bellwire.declare.vendor import VendorCapability
from bellwire.device import PciDevice
from bellwire.virtio.status import Cause, Status
from bellwire.virtio.virtqueue import NO_VECTOR

MOST_QUEUES = 128
BELL = 4
"""Bytes from the notification address of one queue to that of the next (§4.1.4.4): each queue has its own doorbell."""

BAR = 0
COMMON, COMMON_SIZE = 0x0000, 0x40
ISR, ISR_SIZE = 0x1000, 0x4
DEVICE, DEVICE_SIZE = 0x2000, 0x1000
NOTIFY, NOTIFY_SIZE = 0x3000, BELL * MOST_QUEUES

_PLACE = struct.Struct("<BBBxxII")  # cfg_type, bar, id, offset, length: a capability from cfg_type on
PCI_CFG = struct.Struct("<xBxxxII")
PCI_CFG_DATA = _PLACE.size


class Structure(IntEnum):
    """The structure that a capability locates: its cfg_type (§4.1.4)."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI_ACCESS = 5


def _locates(kind: Structure, offset: int, length: int, more: bytes = b"") -> VendorCapability:
    return VendorCapability(_PLACE.pack(kind, BAR, 0, offset, length) + more)


class Transport(PciDevice, repeats=True):
    """The registers and capabilities of every virtio device, without behaviour."""

    irq = MsiX(1)
    line = IntX()

    common_cap = _locates(Structure.COMMON, COMMON, COMMON_SIZE)
    notify_cap = _locates(Structure.NOTIFY, NOTIFY, NOTIFY_SIZE, BELL.to_bytes(4, "little"))
    isr_cap = _locates(Structure.ISR, ISR, ISR_SIZE)
    device_cap = _locates(Structure.DEVICE, DEVICE, DEVICE_SIZE)
    pci_cfg = VendorCapability(
        _PLACE.pack(Structure.PCI_ACCESS, 0, 0, 0, 0) + bytes(4),
        writable=PCI_CFG.pack(0xFF, 0xFFFF_FFFF, 0xFFFF_FFFF) + b"\xff" * 4,
    )

    mmio = Bar(BAR, size=1 << 14)
    device_feature_select = mmio.reg(0x00)
    device_feature = mmio.reg(0x04, access="ro")
    driver_feature_select = mmio.reg(0x08)
    driver_feature = mmio.reg(0x0C)
    config_msix_vector = mmio.reg(0x10, size=2, reset=NO_VECTOR)
    num_queues = mmio.reg(0x12, size=2, access="ro")
    device_status = mmio.reg(0x14, Status, size=1, writable=0)
    config_generation = mmio.reg(0x15, size=1, access="ro")
    queue_select = mmio.reg(0x16, size=2)
    queue_size = mmio.reg(0x18, size=2)
    queue_msix_vector = mmio.reg(0x1A, size=2, reset=NO_VECTOR)
    queue_enable = mmio.reg(0x1C, size=2)
    queue_notify_off = mmio.reg(0x1E, size=2, access="ro")
    queue_desc = mmio.reg(0x20, size=8)
    queue_driver = mmio.reg(0x28, size=8)
    queue_device = mmio.reg(0x30, size=8)
    isr = mmio.reg(ISR, Cause, size=1, access="rc")
    notify = mmio.ioregion(NOTIFY, NOTIFY_SIZE, posted=True, bell=BELL)


def field(offset: int, *, size: int = 4, access: str = "ro", reset: int = 0) -> Register[Any]:
    """A field of the device type's own configuration (§4.1.4.6), ``offset`` bytes from its start."""
    return Transport.mmio.reg(DEVICE + offset, size=size, access=access, reset=reset)
