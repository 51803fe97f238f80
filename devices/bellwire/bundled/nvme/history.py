"""The persistent event log (§5.14.1.13): events of the controller, including those before the last power-off."""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum

from bellwire.bundled.nvme.command import Byte, Command
from bellwire.bundled.nvme.identify import CONTROLLER_ID, FIRMWARE, MODEL, ControllerIdentity, text
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.bundled.nvme.store import Record

SIZE_UNITS = 1
"""The largest log, in units of 64 KiB (PELS)."""
HEADER_SIZE = 512
MOST_BYTES = (SIZE_UNITS << 16) - HEADER_SIZE
EVENT_HEADER = struct.Struct("<BBBxHQ6xHH")
EVENT_HEADER_LENGTH = EVENT_HEADER.size - 3  # it is counted from behind its own field
REVISION = 1
CONTROLLER_FATAL = 0x09  # of the codes of hardware errors


class Happening(IntEnum):
    """Types of persistent events."""

    HEALTH = 0x01
    TIMESTAMP = 0x03
    RESET = 0x04
    HARDWARE_ERROR = 0x05
    CHANGE_NAMESPACE = 0x06
    FORMAT_START = 0x07
    FORMAT_END = 0x08
    SANITIZE_START = 0x09
    SANITIZE_END = 0x0A


class Action(IntEnum):
    """What Get Log Page does with the reporting context, in its log specific field."""

    READ = 0
    ESTABLISH = 1
    RELEASE = 2


class History:
    """The events in ``record``, oldest first. ``now`` gives the timestamp; ``changed`` is called after each event."""

    def __init__(
        self, record: Record, identity: ControllerIdentity, now: Callable[[], int], changed: Callable[[], None]
    ) -> None:
        self._record = record
        self._identity = identity
        self._now = now
        self._changed = changed
        self._context: bytes | None = None

    def add(self, kind: Happening, data: bytes) -> None:
        """Record an event. The oldest ones make room for it."""
        header = EVENT_HEADER.pack(kind, REVISION, EVENT_HEADER_LENGTH, CONTROLLER_ID, self._now(), 0, len(data))
        events = self._record.events
        events.append(header + data)
        total = sum(map(len, events))
        while total > MOST_BYTES:
            total -= len(events.pop(0))
        self._changed()

    def release(self) -> None:
        """Release the reporting context, as a controller reset does."""
        self._context = None

    def page(self, command: Command) -> bytes:
        """The log as it was when its reporting context was established; the command can establish one."""
        action = command.cdw10 >> 8 & 0xF
        if action > Action.RELEASE:
            raise CommandError(Status.INVALID_FIELD, Byte.CDW10)
        if action == Action.RELEASE:
            self._context = None
            return b""
        if (action == Action.ESTABLISH) is (self._context is not None):
            raise CommandError(Status.COMMAND_SEQUENCE_ERROR, Byte.CDW10)
        if self._context is None:
            self._context = self._compose()
        return self._context

    def _compose(self) -> bytes:
        """Compose the log: the header, then the events, the newest first."""
        record, identity = self._record, self._identity
        events = b"".join(reversed(record.events))
        header = bytearray(HEADER_SIZE)
        struct.pack_into("<B3xIQBxH", header, 0, 0x0D, len(record.events), HEADER_SIZE + len(events), REVISION, 492)
        struct.pack_into("<Q16xQHH", header, 20, self._now(), record.power_cycles, identity.vendor, identity.vendor)
        struct.pack_into("<20s40s256s", header, 56, text(identity.serial, 20), text(MODEL, 40), identity.nqn)
        struct.pack_into("<Q24x", header, 480, sum(1 << kind for kind in Happening))
        return bytes(header) + events


def reset_event(power_cycles: int, now: int) -> bytes:
    """The data of a Power-on or Reset event: the firmware revision, and one controller."""
    return text(FIRMWARE, 8) + struct.pack("<HBB12xIQQ", CONTROLLER_ID, 0, 0, power_cycles & 0xFFFF_FFFF, now, now)
