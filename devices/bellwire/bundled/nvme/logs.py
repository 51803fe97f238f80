"""Log pages (§5.14): what went wrong, how much was done, which commands there are."""

from __future__ import annotations

import ctypes
import struct
from enum import IntEnum

from bellwire.bundled.nvme.command import AdminOpcode, Byte, Command, IoOpcode
from bellwire.bundled.nvme.features import ROOM_TEMPERATURE, Features
from bellwire.bundled.nvme.identify import ERROR_ENTRIES, FIRMWARE
from bellwire.bundled.nvme.status import CommandError, Status

ERROR_ENTRY = struct.Struct("<QHHHHQIBB2xQ")
ENTRY_SIZE = 64
ERRORS_SIZE = ERROR_ENTRIES * ENTRY_SIZE

SUPPORTED, CHANGES_DATA = 1 << 0, 1 << 1  # commands supported and effects (§5.14.1.5)
UNIT = 1000  # of 512 bytes: what SMART counts data in


class LogPage(IntEnum):
    """Log page identifiers."""

    ERRORS = 0x01
    HEALTH = 0x02
    FIRMWARE = 0x03
    CHANGED_NAMESPACES = 0x04
    EFFECTS = 0x05


class Counters(ctypes.Structure):
    """What has been done and gone wrong since power-on; in the device's state."""

    _fields_ = [
        (name, ctypes.c_uint64) for name in ("reads", "writes", "sectors_read", "sectors_written", "media", "errors")
    ]
    reads: int
    writes: int
    sectors_read: int
    sectors_written: int
    media: int
    errors: int


class Logs:
    """The log pages of one controller; ``counters`` and ``errors`` (a ring of entries) lie in its state."""

    def __init__(self, counters: Counters, errors: memoryview, features: Features) -> None:
        self.counters = counters
        self._features = features
        self._errors = errors

    def failed(self, sqid: int, command: Command, error: CommandError) -> None:
        """Remember a command that failed (§5.14.1.1); the oldest entry makes room."""
        self.counters.errors += 1
        count = self.counters.errors
        lba = command.cdw10 | command.cdw11 << 32 if sqid else 0
        ERROR_ENTRY.pack_into(
            self._errors,
            (count - 1) % ERROR_ENTRIES * ENTRY_SIZE,
            count, sqid, command.cid, error.status.field << 1, error.parameter, lba, command.nsid, 0, 0, 0,
        )  # fmt: skip

    def get(self, command: Command) -> bytes:
        """What Get Log Page transfers: the length that was asked for, padded with zeroes."""
        number, length = command.cdw10 & 0xFF, requested(command)
        offset = command.cdw12 | command.cdw13 << 32
        match number:
            case LogPage.ERRORS:
                page = self._error_page()
            case LogPage.HEALTH:
                page = self._health_page()
            case LogPage.FIRMWARE:
                page = (b"\x01".ljust(8, b"\0") + FIRMWARE.encode().ljust(8)).ljust(512, b"\0")
            case LogPage.CHANGED_NAMESPACES:
                page = bytes(4096)
            case LogPage.EFFECTS:
                page = _effects_page()
            case _:
                raise CommandError(Status.INVALID_LOG_PAGE, Byte.CDW10)
        if offset % 4 or offset > len(page):
            raise CommandError(Status.INVALID_FIELD, Byte.CDW12)
        return page[offset : offset + length].ljust(length, b"\0")

    def _error_page(self) -> bytes:
        """The newest entry first."""
        newest = (self.counters.errors - 1) % ERROR_ENTRIES
        entries = [bytes(self._errors[at : at + ENTRY_SIZE]) for at in range(0, ERRORS_SIZE, ENTRY_SIZE)]
        return b"".join(entries[(newest - age) % ERROR_ENTRIES] for age in range(ERROR_ENTRIES))

    def _health_page(self) -> bytes:
        """SMART / health information (§5.14.1.2)."""
        counters = self.counters
        page = bytearray(512)
        struct.pack_into("<BHBBB", page, 0, self._features.warnings, ROOM_TEMPERATURE, 100, 10, 0)
        for at, value in (
            (32, -(-counters.sectors_read // UNIT)),
            (48, -(-counters.sectors_written // UNIT)),
            (64, counters.reads),
            (80, counters.writes),
            (112, 1),  # power cycles
            (160, counters.media),
            (176, counters.errors),
        ):
            struct.pack_into("<Q", page, at, value)
        return bytes(page)


def requested(command: Command) -> int:
    """Bytes that Get Log Page asks for; it counts dwords from zero."""
    return ((command.cdw11 & 0xFFFF) << 16 | command.cdw10 >> 16) * 4 + 4


def _effects_page() -> bytes:
    page = bytearray(4096)
    for admin in AdminOpcode:
        struct.pack_into("<I", page, 4 * admin, SUPPORTED)
    for opcode in IoOpcode:
        changes = opcode not in (IoOpcode.READ, IoOpcode.FLUSH)
        struct.pack_into("<I", page, 1024 + 4 * opcode, SUPPORTED | (CHANGES_DATA if changes else 0))
    return bytes(page)
