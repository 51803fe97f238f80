"""Identify Controller: identity and abilities of the controller (§5.15.2.2)."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from typing import NamedTuple

from bellwire.bundled.nvme.guest_pages import MDTS
from bellwire.bundled.nvme.namespace import OUI
from bellwire.bundled.nvme.registers import VERSION_1_4

MODEL = "Bellwire NVMe"
FIRMWARE = "1"
EVENT_REQUESTS = 4
"""The limit of open asynchronous event requests."""
ERROR_ENTRIES = 64
CONTROLLER_ID = 1
ABORTS = 4

FORMAT, NAMESPACE_MANAGEMENT, SELF_TEST, DOORBELL_BUFFERS = 1 << 1, 1 << 3, 1 << 4, 1 << 8  # OACS
NAMESPACE_NOTICES = 1 << 8  # OAES
ONE_READ_ONLY_SLOT = 1 << 1 | 1  # FRMW
EFFECTS, OFFSETS, TELEMETRY, PERSISTENT_EVENTS = 1 << 1, 1 << 2, 1 << 3, 1 << 4  # LPA
COMPARE, WRITE_UNCORRECTABLE, DATASET_MANAGEMENT, WRITE_ZEROES = 1 << 0, 1 << 1, 1 << 2, 1 << 3  # ONCS
SELECT, TIMESTAMP, VERIFY, COPY = 1 << 4, 1 << 6, 1 << 7, 1 << 8
OPTIONAL_COMMANDS = (
    COMPARE | WRITE_UNCORRECTABLE | DATASET_MANAGEMENT | WRITE_ZEROES | SELECT | TIMESTAMP | VERIFY | COPY
)
ONE_SELF_TEST = 1 << 0  # DSTO: in the whole subsystem
CACHE_FLUSHED_FOR_ALL = 0b111  # VWC: there is a volatile cache, and a flush of FFFFFFFFh flushes all
COPY_FORMAT_0 = 1 << 0  # OCFS
IO_CONTROLLER = 1  # CNTRLTYPE


class Abilities(NamedTuple):
    """Numbers from other parts of the controller."""

    namespace_ids: int
    capacity: int
    unallocated: int
    self_test_minutes: int
    sanitize: int
    event_log_units: int


@dataclass(frozen=True, slots=True)
class ControllerIdentity:
    """The identity of a controller."""

    vendor: int
    subsystem_vendor: int
    serial: str

    @property
    def uuid(self) -> uuid.UUID:
        """A UUID made from the serial number. The UUIDs of namespaces are made from it."""
        return uuid.uuid5(uuid.NAMESPACE_OID, f"bellwire-nvme-{self.serial}")

    @property
    def eui64(self) -> int:
        """The device serial number in config space (PCIe 6.0 §7.9.3)."""
        return int.from_bytes(OUI + self.uuid.bytes[11:16])

    @property
    def nqn(self) -> bytes:
        """The qualified name of the subsystem (§7.9)."""
        return f"nqn.2014-08.org.nvmexpress:uuid:{self.uuid}".encode()

    def page(self, abilities: Abilities) -> bytes:
        """4096 bytes. Fields that are left out are zero: not supported, or not reported."""
        page = bytearray(4096)
        struct.pack_into("<HH", page, 0, self.vendor, self.subsystem_vendor)
        struct.pack_into("<20s40s8s", page, 4, text(self.serial, 20), text(MODEL, 40), text(FIRMWARE, 8))
        page[77] = MDTS
        struct.pack_into("<HI", page, 78, CONTROLLER_ID, VERSION_1_4)
        struct.pack_into("<I", page, 92, NAMESPACE_NOTICES)
        page[111] = IO_CONTROLLER
        admin = FORMAT | NAMESPACE_MANAGEMENT | SELF_TEST | DOORBELL_BUFFERS
        struct.pack_into("<HBB", page, 256, admin, ABORTS - 1, EVENT_REQUESTS - 1)
        logs = EFFECTS | OFFSETS | TELEMETRY | PERSISTENT_EVENTS
        struct.pack_into("<BBB", page, 260, ONE_READ_ONLY_SLOT, logs, ERROR_ENTRIES - 1)
        struct.pack_into("<HH", page, 266, 343, 353)  # temperatures that worry the host: 70 and 80 degrees Celsius
        for at, size in ((280, abilities.capacity), (296, abilities.unallocated)):
            struct.pack_into("<16s", page, at, size.to_bytes(16, "little"))
        struct.pack_into("<HB", page, 316, abilities.self_test_minutes, ONE_SELF_TEST)
        struct.pack_into("<I", page, 328, abilities.sanitize)
        struct.pack_into("<I", page, 352, abilities.event_log_units)
        page[512] = 0x66  # a submission queue entry is 2**6 bytes, no more and no less
        page[513] = 0x44
        struct.pack_into("<I", page, 516, abilities.namespace_ids)
        struct.pack_into("<H", page, 520, OPTIONAL_COMMANDS)
        page[525] = CACHE_FLUSHED_FOR_ALL
        struct.pack_into("<H", page, 534, COPY_FORMAT_0)
        struct.pack_into("<256s", page, 768, self.nqn)
        struct.pack_into("<H", page, 2048, 2500)  # the only power state: at most 25 W, in hundredths
        return bytes(page)


def text(value: str, size: int) -> bytes:
    """ASCII, padded with spaces (§1.5)."""
    return value.encode("ascii", "replace")[:size].ljust(size)
