"""Log pages (§5.14): errors, health, and the supported commands."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from enum import IntEnum

from bellwire.bundled.nvme.command import AdminOpcode, Byte, Command, IoOpcode
from bellwire.bundled.nvme.features import Features
from bellwire.bundled.nvme.identify import ERROR_ENTRIES, FIRMWARE, text
from bellwire.bundled.nvme.status import CommandError, Status

ERROR_ENTRY = struct.Struct("<QHHHHQIBB2xQ")
ENTRY_SIZE = 64
ERRORS_SIZE = ERROR_ENTRIES * ENTRY_SIZE

SUPPORTED, CHANGES_DATA, CHANGES_NAMESPACES, CHANGES_INVENTORY = 1 << 0, 1 << 1, 1 << 2, 1 << 3
ALONE_IN_NAMESPACE, ALONE = 1 << 16, 2 << 16
IO_EFFECTS = {
    IoOpcode.WRITE: CHANGES_DATA,
    IoOpcode.WRITE_UNCORRECTABLE: CHANGES_DATA,
    IoOpcode.WRITE_ZEROES: CHANGES_DATA,
    IoOpcode.DATASET_MANAGEMENT: CHANGES_DATA,
    IoOpcode.COPY: CHANGES_DATA,
}
ADMIN_EFFECTS = {
    AdminOpcode.FORMAT_NVM: CHANGES_DATA | CHANGES_NAMESPACES | ALONE_IN_NAMESPACE,
    AdminOpcode.SANITIZE: CHANGES_DATA | ALONE,
    AdminOpcode.NAMESPACE_MANAGEMENT: CHANGES_DATA | CHANGES_INVENTORY,
    AdminOpcode.NAMESPACE_ATTACHMENT: CHANGES_INVENTORY,
}
"""The effects of commands (§5.14.1.5)."""
UNIT = 1000  # of 512 bytes: what SMART counts data in


class LogPage(IntEnum):
    """Log page identifiers."""

    ERRORS = 0x01
    HEALTH = 0x02
    FIRMWARE = 0x03
    CHANGED_NAMESPACES = 0x04
    EFFECTS = 0x05
    SELF_TEST = 0x06
    HOST_TELEMETRY = 0x07
    CONTROLLER_TELEMETRY = 0x08
    PERSISTENT_EVENTS = 0x0D
    SANITIZE = 0x81


COUNTERS = ("reads", "writes", "sectors_read", "sectors_written", "media", "errors")


class Counters(ctypes.Structure):
    """Counters of work and errors since power-on, in the device's state."""

    _fields_ = [(name, ctypes.c_uint64) for name in COUNTERS]
    reads: int
    writes: int
    sectors_read: int
    sectors_written: int
    media: int
    errors: int

    def by_name(self) -> dict[str, int]:
        """All counters by name."""
        return {name: getattr(self, name) for name in COUNTERS}


class Logs:
    """The log pages of one controller; ``counters`` and ``errors`` (a ring of entries) lie in its state."""

    def __init__(self, counters: Counters, errors: memoryview, features: Features) -> None:
        self.counters = counters
        self._features = features
        self._errors = errors
        self.power_cycles = 1
        self.pages: dict[int, Callable[[Command], bytes]] = {
            LogPage.ERRORS: self._error_page,
            LogPage.HEALTH: self.health_page,
            LogPage.FIRMWARE: lambda _: (b"\x01".ljust(8, b"\0") + text(FIRMWARE, 8)).ljust(512, b"\0"),
            LogPage.EFFECTS: lambda _: _effects_page(),
        }
        """The function that makes each log page. Other parts of the controller add theirs."""

    def failed(self, sqid: int, command: Command, error: CommandError) -> None:
        """Record a command that failed (§5.14.1.1). The oldest entry makes room for it."""
        self.counters.errors += 1
        count = self.counters.errors
        lba = command.cdw10 | command.cdw11 << 32 if sqid else 0
        ERROR_ENTRY.pack_into(
            self._errors,
            (count - 1) % ERROR_ENTRIES * ENTRY_SIZE,
            count, sqid, command.cid, error.status.field << 1, error.parameter, lba, command.nsid, 0, 0, 0,
        )  # fmt: skip

    def get(self, command: Command) -> bytes:
        """The data of Get Log Page: the length that was asked for, padded with zeros."""
        number, length = command.cdw10 & 0xFF, requested(command)
        offset = command.cdw12 | command.cdw13 << 32
        source = self.pages.get(number)
        if source is None:
            raise CommandError(Status.INVALID_LOG_PAGE, Byte.CDW10)
        page = source(command)
        if offset % 4 or offset > len(page):
            raise CommandError(Status.INVALID_FIELD, Byte.CDW12)
        return page[offset : offset + length].ljust(length, b"\0")

    def _error_page(self, _: Command) -> bytes:
        """Error Information (§5.14.1.1), the newest entry first."""
        newest = (self.counters.errors - 1) % ERROR_ENTRIES
        entries = [bytes(self._errors[at : at + ENTRY_SIZE]) for at in range(0, ERRORS_SIZE, ENTRY_SIZE)]
        return b"".join(entries[(newest - age) % ERROR_ENTRIES] for age in range(ERROR_ENTRIES))

    def health_page(self, _: Command | None = None) -> bytes:
        """SMART / health information (§5.14.1.2)."""
        counters = self.counters
        page = bytearray(512)
        struct.pack_into("<BHBBB", page, 0, self._features.warnings, self._features.temperature, 100, 10, 0)
        for at, value in (
            (32, -(-counters.sectors_read // UNIT)),
            (48, -(-counters.sectors_written // UNIT)),
            (64, counters.reads),
            (80, counters.writes),
            (112, self.power_cycles),
            (160, counters.media),
            (176, counters.errors),
        ):
            struct.pack_into("<Q", page, at, value)
        return bytes(page)


def requested(command: Command) -> int:
    """The number of bytes that Get Log Page asks for. Its field counts dwords from zero."""
    return ((command.cdw11 & 0xFFFF) << 16 | command.cdw10 >> 16) * 4 + 4


def _effects_page() -> bytes:
    page = bytearray(4096)
    for admin in AdminOpcode:
        struct.pack_into("<I", page, 4 * admin, SUPPORTED | ADMIN_EFFECTS.get(admin, 0))
    for opcode in IoOpcode:
        struct.pack_into("<I", page, 1024 + 4 * opcode, SUPPORTED | IO_EFFECTS.get(opcode, 0))
    return bytes(page)
