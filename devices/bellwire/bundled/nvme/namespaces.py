"""Namespaces: disks as the host numbers them, from 1 (§6.1)."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence

from bellwire.bundled.nvme.command import ALL_NAMESPACES, Byte
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.storage import Disk

WRITE_PROTECTED = 1  # NSATTR
WRITE_ZEROES_DEALLOCATES, READS_ZEROES = 1 << 3, 1  # DLFEAT: what becomes of deallocated blocks
UUID_DESCRIPTOR = 3

SIZES = struct.Struct("<QQQ")


class Namespace:
    """One disk in blocks of ``block_size`` bytes; a rest that fills no block is left out."""

    def __init__(self, nsid: int, disk: Disk, block_size: int, identity: uuid.UUID) -> None:
        self.nsid = nsid
        self.disk = disk
        self.uuid = identity
        self.shift = block_size.bit_length() - 1
        self.blocks = disk.size >> self.shift

    def span(self, start: int, count: int) -> tuple[int, int]:
        """Offset and length in bytes of ``count`` blocks from ``start``; LBA Out of Range where there are none."""
        if start + count > self.blocks:
            raise CommandError(Status.LBA_OUT_OF_RANGE, Byte.CDW10)
        return start << self.shift, count << self.shift

    def check_writable(self) -> None:
        """Refuse a command that would change a read-only namespace."""
        if self.disk.readonly:
            raise CommandError(Status.WRITE_PROTECTED, Byte.NSID)

    def identify(self) -> bytes:
        """Identify Namespace, 4096 bytes (§5.15.2.1): one LBA format, no metadata, no protection."""
        page = bytearray(4096)
        SIZES.pack_into(page, 0, self.blocks, self.blocks, self.blocks)
        page[33] = WRITE_ZEROES_DEALLOCATES | READS_ZEROES
        page[99] = WRITE_PROTECTED if self.disk.readonly else 0
        struct.pack_into("<I", page, 128, self.shift << 16)
        return bytes(page)

    def descriptors(self) -> bytes:
        """Namespace Identification Descriptor list, 4096 bytes (§5.15.2.4)."""
        return (struct.pack("<BBH", UUID_DESCRIPTOR, 16, 0) + self.uuid.bytes).ljust(4096, b"\0")


class Namespaces:
    """All of them."""

    def __init__(self, namespaces: Sequence[Namespace]) -> None:
        self._all = tuple(namespaces)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, nsid: int) -> Namespace:
        """The namespace of a command; Invalid Namespace or Format where there is none (§6.1.2)."""
        if not 0 < nsid <= len(self._all):
            raise CommandError(Status.INVALID_NAMESPACE, Byte.NSID)
        return self._all[nsid - 1]

    def addressed(self, nsid: int) -> tuple[Namespace, ...]:
        """Those that ``nsid`` means: one, or with FFFFFFFFh all."""
        return self._all if nsid == ALL_NAMESPACES else (self[nsid],)

    def active_after(self, nsid: int) -> bytes:
        """Active Namespace ID list, 4096 bytes: those above ``nsid`` (§5.15.2.3)."""
        found = [space.nsid for space in self._all if space.nsid > nsid][:1024]
        return struct.pack(f"<{len(found)}I", *found).ljust(4096, b"\0")

    def close(self) -> None:
        """Close the disks."""
        for space in self._all:
            space.disk.close()
