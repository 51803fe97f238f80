"""Identify Controller: what the host learns first (§5.15.2.2)."""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass

from bellwire.bundled.nvme.guest_pages import MDTS
from bellwire.bundled.nvme.registers import VERSION_1_4

MODEL = "Bellwire NVMe"
FIRMWARE = "1"
EVENT_REQUESTS = 4
"""Asynchronous event requests that may wait at once."""
ERROR_ENTRIES = 64
ABORTS = 4

DOORBELL_BUFFERS = 1 << 8  # OACS
NAMESPACE_NOTICES = 1 << 8  # OAES
ONE_READ_ONLY_SLOT = 1 << 1 | 1  # FRMW
EFFECTS_AND_OFFSETS = 1 << 1 | 1 << 2  # LPA
DATASET_MANAGEMENT, WRITE_ZEROES, SELECT = 1 << 2, 1 << 3, 1 << 4  # ONCS
CACHE_FLUSHED_FOR_ALL = 0b111  # VWC: there is a volatile cache, and a flush of FFFFFFFFh flushes all
IO_CONTROLLER = 1  # CNTRLTYPE


@dataclass(frozen=True, slots=True)
class ControllerIdentity:
    """Who this controller is."""

    vendor: int
    subsystem_vendor: int
    serial: str
    namespaces: int

    @property
    def uuid(self) -> uuid.UUID:
        """A name that is the same for the same serial number: the namespaces' are made from it."""
        return uuid.uuid5(uuid.NAMESPACE_OID, f"bellwire-nvme-{self.serial}")

    def page(self) -> bytes:
        """4096 bytes. Fields that are left out are zero: not supported, or not reported."""
        page = bytearray(4096)
        struct.pack_into("<HH", page, 0, self.vendor, self.subsystem_vendor)
        page[4:24] = _text(self.serial, 20)
        page[24:64] = _text(MODEL, 40)
        page[64:72] = _text(FIRMWARE, 8)
        page[77] = MDTS
        struct.pack_into("<HI", page, 78, 1, VERSION_1_4)
        struct.pack_into("<I", page, 92, NAMESPACE_NOTICES)
        page[111] = IO_CONTROLLER
        struct.pack_into("<HBB", page, 256, DOORBELL_BUFFERS, ABORTS - 1, EVENT_REQUESTS - 1)
        struct.pack_into("<BBB", page, 260, ONE_READ_ONLY_SLOT, EFFECTS_AND_OFFSETS, ERROR_ENTRIES - 1)
        struct.pack_into("<HH", page, 266, 343, 353)  # temperatures that worry the host: 70 and 80 degrees Celsius
        page[512] = 0x66  # a submission queue entry is 2**6 bytes, no more and no less
        page[513] = 0x44
        struct.pack_into("<I", page, 516, self.namespaces)
        struct.pack_into("<H", page, 520, DATASET_MANAGEMENT | WRITE_ZEROES | SELECT)
        page[525] = CACHE_FLUSHED_FOR_ALL
        name = f"nqn.2014-08.org.nvmexpress:uuid:{self.uuid}".encode()
        page[768 : 768 + len(name)] = name
        struct.pack_into("<H", page, 2048, 2500)  # the only power state: at most 25 W, in hundredths
        return bytes(page)


def _text(value: str, size: int) -> bytes:
    """ASCII, padded with spaces (§1.5)."""
    return value.encode("ascii", "replace")[:size].ljust(size)
