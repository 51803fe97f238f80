"""Virtio's device types (§5): what the front end must know of each."""

from __future__ import annotations

from typing import NamedTuple

OTHER_CLASS = 0x00FF00
ANY_CONFIG = 256


class DeviceType(NamedTuple):
    """A type: its id, its PCI class, the queues that it has by default, and the size of its configuration in bytes.

    ``own`` are queues that the back end does not get: nothing ever comes in them. ``blank``: a driver can do with a
    configuration of zeros, so a back end need not have any.
    """

    id: int
    class_code: int = OTHER_CLASS
    queues: int = 1
    config: int = ANY_CONFIG
    own: frozenset[int] = frozenset()
    blank: bool = False


TYPES = {
    "net": DeviceType(1, 0x020000, 2, 12),
    "blk": DeviceType(2, 0x010000, 1, 60),
    "console": DeviceType(3, 0x078000, 2, 12, blank=True),
    "rng": DeviceType(4, queues=1, config=0),
    "scsi": DeviceType(8, 0x010000, 3, 36, blank=True),
    "gpu": DeviceType(16, 0x038000, 2, 16),
    "input": DeviceType(18, 0x090000, 2, 136),
    "vsock": DeviceType(19, 0x028000, 3, 8, frozenset({2})),
    "crypto": DeviceType(20, 0x100000, 2, 56),
    "sound": DeviceType(25, 0x040100, 4, 12),
    "fs": DeviceType(26, 0x018000, 2, 44),
    "i2c": DeviceType(34, 0x0C8000, 1, 0),
    "gpio": DeviceType(41, queues=2, config=8),
}
"""The types with names. The class codes are those by which PCI knows such devices; Linux looks at the id alone."""

MOST_ID = 63
"""The largest id: PCI device ids for virtio are 0x1040 to 0x107f (§4.1.2.1)."""


def device_type(text: str) -> DeviceType | None:
    """The type of this name or number; None if there is none."""
    if text in TYPES:
        return TYPES[text]
    if text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_ID:
        number = int(text)
        return next((each for each in TYPES.values() if each.id == number), DeviceType(number, blank=True))
    return None


def type_fault(text: str) -> str | None:
    """What was expected, if ``text`` is neither empty nor a type; else None."""
    if not text or device_type(text) is not None:
        return None
    return f"{', '.join(TYPES)}, or virtio's number of a type, 1 to {MOST_ID}"
