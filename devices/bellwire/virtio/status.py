"""Bits of device status, features and ISR status."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Status(IntFlag):
    """The device status field (§2.1): the steps of initialization that the driver has completed."""

    ACKNOWLEDGE = 0x01
    DRIVER = 0x02
    DRIVER_OK = 0x04
    FEATURES_OK = 0x08
    NEEDS_RESET = 0x40
    FAILED = 0x80


class Feature(IntEnum):
    """Feature bits that are common to all device types (§6)."""

    INDIRECT_DESC = 28
    EVENT_IDX = 29
    VERSION_1 = 32
    ACCESS_PLATFORM = 33
    RING_PACKED = 34


class Cause(IntFlag):
    """Why there was an interrupt: the bits of the ISR status (§4.1.4.5)."""

    QUEUE = 0x1
    CONFIGURATION = 0x2
