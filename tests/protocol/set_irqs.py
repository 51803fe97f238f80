"""DEVICE_SET_IRQS for the tests: its numbers by short names, a request, and an eventfd's count."""

from __future__ import annotations

import os
import struct

from vfio_user import Command, IrqIndex, SetIrqsFlags

SET = Command.DEVICE_SET_IRQS
NONE, BOOL, EVENTFD = SetIrqsFlags.DATA_NONE, SetIrqsFlags.DATA_BOOL, SetIrqsFlags.DATA_EVENTFD
MASK, UNMASK, TRIGGER = SetIrqsFlags.MASK, SetIrqsFlags.UNMASK, SetIrqsFlags.TRIGGER
MSIX, INTX = IrqIndex.MSIX, IrqIndex.INTX


def request(flags: int, index: int = MSIX, start: int = 0, count: int = 1, data: bytes = b"") -> bytes:
    return struct.pack("<IIIII", 20 + len(data), flags, index, start, count) + data


def count(fd: int) -> int:
    """How often an eventfd was signalled since last asked."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
