"""Queues and messages of a virtio console (§5.3)."""

from __future__ import annotations

import struct
from enum import IntEnum

CONTROL = struct.Struct("<IHH")  # port, event, value
LARGEST_NAME = 64


class Console(IntEnum):
    """Feature bits (§5.3.3)."""

    SIZE = 0
    MULTIPORT = 1
    EMERG_WRITE = 2


class Event(IntEnum):
    """The events of control messages (§5.3.6.2)."""

    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


def queue_role(index: int) -> tuple[int | None, bool]:
    """The port of a queue (None for control queues), and whether it is a transmit queue (§5.3.2)."""
    pair, output = divmod(index, 2)
    if pair == 1:
        return None, bool(output)
    return (pair - 1 if pair else 0), bool(output)
