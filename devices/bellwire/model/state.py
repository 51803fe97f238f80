"""A device's state: one private memory file. A snapshot copies what is in it.

The file starts with a header: a magic number, a digest of the declarations, and a word that is set while a hook, a
reset or a restore runs. If the word is set in the state of a process that has died, the state may be torn. After the
header come config space, the registers of each BAR, the doorbell counts, the MSI-X table and pending bits, and the
saved fields. No client ever gets this file.

Areas that a guest maps lie in files of their own, one for each BAR, sealed against shrinking: a client gets these.

All files are sparse. They have the sizes that the declarations ask for, and memory only for the pages that were
written: a BAR of 64 GiB costs nothing at first.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
import zlib
from typing import Any

from bellwire.declare.bar import BARS, Area
from bellwire.declare.capability import ExtendedCapability
from bellwire.declare.declared import Declared
from bellwire.declare.doorbell import Doorbell, Rings
from bellwire.declare.layout import Layout
from bellwire.declare.register import Register
from bellwire.declare.saved import Saved, SavedBytes
from bellwire.errors import StateError
from bellwire.linux import KEEP_SIZE, PUNCH_HOLE, fallocate
from bellwire.model.capabilities import Template
from bellwire.model.extents import Extent, pack, unpack

MAGIC = 0x5354_4C42  # "BLTS" when read as text
HEADER = struct.Struct("<IIQQ")  # magic, digest, busy, flags
TABLE_USED = 0
_ALIGN = 8
_SEALS = 0x7  # F_SEAL_SEAL, F_SEAL_SHRINK and F_SEAL_GROW; the fcntl module has no names for them before 3.12
_ADD_SEALS = 1033


class State:
    """The memory of one device. It owns its files until :meth:`close`; views that device code holds stay valid."""

    def __init__(self, layout: Layout, space: Template) -> None:
        self.layout = layout
        self._digest = zlib.crc32(space.content, zlib.crc32(space.writable, layout.digest))
        sizes = _Sizes()
        header = sizes.take(HEADER.size)
        config = sizes.take(len(space.content))
        files = {index: sizes.take(plan.file_size) for index, plan in layout.bars.items()}
        counts = sizes.take(8 * len(layout.doorbells))
        msix = layout.msix
        table = sizes.take(msix.pba_offset if msix else 0)
        pba = sizes.take(msix.pba_size if msix else 0)
        saved = [(item, sizes.take(item.size)) for item in layout.saved]

        self.fd = os.memfd_create(f"bellwire-state-{layout.where}"[:200], os.MFD_CLOEXEC)
        os.ftruncate(self.fd, sizes.total)
        self._map = mmap.mmap(self.fd, sizes.total)
        self._view = memoryview(self._map)
        HEADER.pack_into(self._view, 0, MAGIC, self._digest, 0, 0)

        self._words = self._view[header].cast("Q")
        self.config = self._view[config]
        empty = self._view[:0]
        self.registers: dict[int | ExtendedCapability, memoryview] = {
            index: self._view[files[index]] if index in files else empty for index in range(BARS)
        }
        """The register file of each BAR, by its index, and the bytes of each extended capability."""
        for extended in layout.extended:
            self.registers[extended.capability] = self.config[extended.at : extended.end]
        self._counts = self._view[counts].cast("Q")
        self.rings: dict[Doorbell, Rings] = {
            bell: Rings(self._counts, slot) for slot, bell in enumerate(layout.doorbells)
        }
        self.msix = self._view[table]
        self.pba = self._view[pba]
        self.saved: dict[Saved[Any] | SavedBytes, memoryview] = {item: self._view[span] for item, span in saved}

        self.area_fds: dict[int, int] = {}
        self._area_maps: list[mmap.mmap] = []
        self.areas: dict[Area, memoryview] = {}
        self.area_files: dict[int, memoryview] = {}
        for index, plan in layout.bars.items():
            if plan.areas:
                self._map_areas(index, plan.bar.size, plan.areas)

    def _map_areas(self, index: int, size: int, areas: tuple[Area, ...]) -> None:
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        fd = os.memfd_create(f"bellwire-bar{index}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.area_fds[index] = fd
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, _ADD_SEALS, _SEALS)
        area_map = mmap.mmap(fd, size)
        self._area_maps.append(area_map)
        self.area_files[index] = memoryview(area_map)
        for area in areas:
            self.areas[area] = self.area_files[index][area.offset : area.offset + area.size]

    @property
    def busy(self) -> bool:
        """Whether a hook is running. If the process has died meanwhile, the state is torn."""
        return bool(self._words[1])

    def enter(self) -> None:
        """A hook starts. Hooks can nest, when a hook causes another one through the SDK."""
        self._words[1] += 1

    def leave(self) -> None:
        """The hook has ended."""
        self._words[1] -= 1

    @property
    def table_used(self) -> bool:
        """Whether the guest has written the MSI-X table here, rather than one that the client keeps."""
        return bool(self._words[2] >> TABLE_USED & 1)

    @table_used.setter
    def table_used(self, used: bool) -> None:
        self._words[2] = int(used) << TABLE_USED

    def reset(self) -> None:
        """Give registers, counts, MSI-X and saved fields their values after power-on, and fill areas with zeros."""
        self.enter()
        self.reset_registers()
        self.table_used = False
        self.msix[:] = bytes(len(self.msix))
        for entry in range(0, len(self.msix), 16):
            self.msix[entry + 12] = 1  # every vector starts masked (PCI 3.0 §6.8.2.9)
        self.pba[:] = bytes(len(self.pba))
        for area in self.areas:  # gives the pages back: a large area costs memory only where it is written
            fallocate(self.area_fds[area.bar.index], PUNCH_HOLE | KEEP_SIZE, area.offset, area.size)
        self.leave()

    def reset_registers(self, keep: frozenset[Declared] = frozenset()) -> None:
        """Give registers, counts and saved fields their values after power-on, except those in ``keep``."""
        self.enter()
        for plan in self.layout.bars.values():
            if plan.bar in keep:
                continue
            file = self.registers[plan.bar.index]
            for item in plan.placed:
                if item in keep:
                    continue
                if isinstance(item, Register):
                    item.store(file, item.reset)
                elif isinstance(item, Doorbell):
                    self.rings[item].clear()
        for saved, cell in self.saved.items():
            if saved not in keep:
                saved.clear(cell)
        self.leave()

    def snapshot(self) -> bytes:
        """The state as bytes: the header of the state file, then what has been written in it and in each area."""
        return bytes(self._view[: HEADER.size]) + pack(self._extents())

    def restore(self, snapshot: bytes) -> None:
        """Restore what :meth:`snapshot` gave. A StateError if it is of another device, cut short, or torn."""
        if len(snapshot) < HEADER.size:
            raise StateError(f"snapshot of {len(snapshot)} bytes, expected at least {HEADER.size}")
        magic, digest, busy, flags = HEADER.unpack_from(snapshot)
        if magic != MAGIC or digest != self._digest:
            raise StateError(f"snapshot is not one of {self.layout.where} as it is declared now")
        if busy:
            raise StateError("snapshot is torn: it was taken while a hook ran")
        self.enter()
        try:
            unpack(self._extents(), snapshot[HEADER.size :])
            self._words[2] = flags
        finally:
            self.leave()

    def _extents(self) -> list[Extent]:
        """What a snapshot has: the state file behind its header, and each area."""
        extents = [Extent(self.fd, self._view, HEADER.size, len(self._view))]
        for area in self.areas:
            index = area.bar.index
            extents.append(Extent(self.area_fds[index], self.area_files[index], area.offset, area.offset + area.size))
        return extents

    def close(self) -> None:
        """Close the files. Memory that device code still has views of is freed with the last view."""
        views = [self._words, self._counts, self.msix, self.pba, *self.registers.values(), self.config]
        views += [
            *self.saved.values(),
            *self.areas.values(),
            *self.area_files.values(),
            self._view,
        ]
        for view in views:
            with contextlib.suppress(BufferError):
                view.release()
        for mapping in (self._map, *self._area_maps):
            with contextlib.suppress(BufferError):
                mapping.close()
        for fd in (self.fd, *self.area_fds.values()):
            os.close(fd)
        self.area_fds.clear()


class _Sizes:
    """Lays out a file before it is made: hands out aligned ranges."""

    def __init__(self) -> None:
        self.total = 0

    def take(self, size: int) -> slice:
        start = self.total
        self.total += -(-size // _ALIGN) * _ALIGN
        return slice(start, start + size)
