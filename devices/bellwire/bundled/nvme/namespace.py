"""A namespace: one disk in logical blocks (§6.1), as its host identifies it."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterable

from bellwire.bundled.nvme.command import Byte
from bellwire.bundled.nvme.lost_blocks import LostBlocks
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.storage import Disk

FORMATS = (9, 12)
"""LBA formats: the block sizes as powers of two."""
WRITE_PROTECTED = 1  # NSATTR
WRITE_ZEROES_DEALLOCATES, READS_ZEROES = 1 << 3, 1  # DLFEAT: what becomes of deallocated blocks
NEVER_REUSED = 1 << 3  # NSFEAT: no identifier is given to two namespaces
EUI64_DESCRIPTOR, NGUID_DESCRIPTOR, UUID_DESCRIPTOR = 1, 2, 3
OUI = bytes((0x02, 0x42, 0x57))
"""A locally administered number, since this project has none of the IEEE."""
LARGEST_COPY = 4 << 20
"""The largest number of bytes that one Copy moves."""
COPY_RANGES = 128
SIZES = struct.Struct("<QQQ")


class Namespace:
    """A ``disk`` in blocks of ``1 << shift`` bytes. A rest that fills no block is not used.

    ``number`` counts the namespaces that the host has made; it is 0 for the others. ``lost`` has the blocks that cannot
    be read until they are written.
    """

    def __init__(
        self,
        nsid: int,
        disk: Disk,
        block_size: int,
        identity: uuid.UUID,
        *,
        attached: bool = True,
        number: int = 0,
        lost: Iterable[tuple[int, int]] = (),
    ) -> None:
        self.nsid = nsid
        self.disk = disk
        self.uuid = identity
        self.assigned = attached
        """Whether it is attached as far as the host has decided that; a fault may have taken it away."""
        self.gone = False
        """Whether a fault has taken it away for now."""
        self.number = number
        self.held: Status | None = None
        """The status with which I/O is refused during a format or a deletion; else None."""
        self.shift = block_size.bit_length() - 1
        self.blocks = disk.size >> self.shift
        self.lost = LostBlocks(lost)

    @property
    def attached(self) -> bool:
        """Whether the host can use it. Assigning it attaches or detaches it (§8.12)."""
        return self.assigned and not self.gone

    @attached.setter
    def attached(self, attached: bool) -> None:
        self.assigned = attached

    @property
    def made(self) -> bool:
        """Whether the host has made the namespace, by Namespace Management."""
        return self.number != 0

    def format(self, shift: int) -> None:
        """The namespace is empty now, and has blocks of ``1 << shift`` bytes."""
        self.shift = shift
        self.blocks = self.disk.size >> shift
        self.lost.clear()

    def check_resize(self, size: int, *, shrink: bool) -> None:
        """Refuse a size that :meth:`resize` cannot set, or that would lose blocks without ``shrink``."""
        self.disk.check_resize(size, block=1 << self.shift, shrink=shrink)

    def resize(self, size: int, *, shrink: bool) -> bool:
        """Change the disk to ``size`` bytes; 0 takes over its present size. True if the size has changed."""
        before = self.blocks
        self.disk.resize(size, block=1 << self.shift, shrink=shrink)
        self.blocks = self.disk.size >> self.shift
        if self.blocks < before:
            self.lost.remove(self.blocks, before - self.blocks)
        return self.blocks != before

    def span(self, start: int, count: int) -> tuple[int, int]:
        """The offset and length in bytes of ``count`` blocks from ``start``. Raises LBA Out of Range."""
        if start + count > self.blocks:
            raise CommandError(Status.LBA_OUT_OF_RANGE, Byte.CDW10)
        return start << self.shift, count << self.shift

    def check_readable(self, start: int, count: int) -> None:
        """Raise Unrecovered Read Error if a block is marked as uncorrectable (§6.16)."""
        if self.lost.first(start, count) is not None:
            raise CommandError(Status.UNRECOVERED_READ_ERROR, Byte.CDW10)

    def check_writable(self) -> None:
        """Refuse a command that would change a read-only namespace."""
        if self.disk.readonly:
            raise CommandError(Status.WRITE_PROTECTED, Byte.NSID)

    def check_free(self) -> None:
        """Refuse a command while another one formats or deletes the namespace."""
        if self.held is not None:
            raise CommandError(self.held, Byte.NSID)

    @property
    def nguid(self) -> bytes:
        """The NGUID: 16 bytes, based on EUI-64: extension, OUI, extension (§7.11)."""
        return self.uuid.bytes[:8] + OUI + self.uuid.bytes[8:13]

    @property
    def eui64(self) -> bytes:
        """The EUI-64: 8 bytes (§7.10)."""
        return OUI + self.uuid.bytes[11:16]

    def identify(self) -> bytes:
        """Identify Namespace, 4096 bytes (§5.15.2.1): no metadata, no protection."""
        page = bytearray(common_capabilities())
        SIZES.pack_into(page, 0, self.blocks, self.blocks, self.blocks)
        page[26] = FORMATS.index(self.shift)
        size = self.blocks << self.shift
        page[48:64] = size.to_bytes(16, "little")
        most = LARGEST_COPY >> self.shift
        struct.pack_into("<HIB", page, 74, most, most, COPY_RANGES - 1)
        page[99] = WRITE_PROTECTED if self.disk.readonly else 0
        page[104:120] = self.nguid
        page[120:128] = self.eui64
        return bytes(page)

    def descriptors(self) -> bytes:
        """Namespace Identification Descriptor list, 4096 bytes (§5.15.2.4)."""
        found = (
            (UUID_DESCRIPTOR, self.uuid.bytes),
            (NGUID_DESCRIPTOR, self.nguid),
            (EUI64_DESCRIPTOR, self.eui64),
        )
        return b"".join(struct.pack("<BBH", kind, len(name), 0) + name for kind, name in found).ljust(4096, b"\0")


def common_capabilities() -> bytes:
    """The capabilities of all namespaces: Identify Namespace for FFFFFFFFh (§5.15.2.1)."""
    page = bytearray(4096)
    page[24] = NEVER_REUSED
    page[25] = len(FORMATS) - 1
    page[33] = WRITE_ZEROES_DEALLOCATES | READS_ZEROES
    for number, shift in enumerate(FORMATS):
        struct.pack_into("<I", page, 128 + 4 * number, shift << 16)
    return bytes(page)
