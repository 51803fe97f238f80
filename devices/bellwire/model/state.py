"""A device's state: one private memory file. A snapshot copies what is in it.

The file starts with a header: a magic number, the number of its format, and a word that is set while a hook, a reset or
a restore runs. If the word is set in the state of a process that has died, the state may be torn. After the header come
config space, the registers of each BAR, the doorbell counts, the MSI-X table and pending bits, and the saved fields. At
its end the file describes itself (:mod:`.description`), so that other versions of the device's code can read it by
name (:mod:`.moving`). No client ever gets this file.

Areas that a guest maps lie in files of their own, one for each BAR, sealed against shrinking: a client gets these.

All files are sparse. They have the sizes that the declarations ask for, and memory only for the pages that were
written: a BAR of 64 GiB costs nothing at first.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from enum import Enum, Flag
from typing import Any

from bellwire.declare.bar import BARS, Area
from bellwire.declare.capability import ExtendedCapability
from bellwire.declare.declared import Declared
from bellwire.declare.doorbell import Doorbell, Rings
from bellwire.declare.layout import Layout
from bellwire.declare.register import CELLS, Register
from bellwire.declare.saved import Saved, SavedBytes
from bellwire.linux import KEEP_SIZE, PUNCH_HOLE, fallocate, map_over
from bellwire.model.capabilities import Template
from bellwire.model.description import LONGEST, Description, Item, Kind
from bellwire.model.extents import Extent, copy, pack, unpack
from bellwire.model.moving import move
from bellwire.model.seen import Facts
from bellwire.model.source import HEADER, Header, Source, StateFiles

BUSY = 1  # the word of the header that counts hooks
TABLE_WORD = 2  # not 0 if the guest has written the MSI-X table here
TABLE_USED = 0
LARGE = 1 << 16
"""Saved bytes of this size take memory only where they are written: a reset gives it back."""
_ALIGN = 8
_SEALS = 0x7  # F_SEAL_SEAL, F_SEAL_SHRINK and F_SEAL_GROW; the fcntl module has no names for them before 3.12
_ADD_SEALS = 1033
_KINDS = {bool: Kind.BOOL, float: Kind.FLOAT}


class State:
    """The memory of one device. It owns its files until :meth:`close`; views that device code holds stay valid.

    ``name`` is the device's, and ``facts`` are what its guest sees: the description has both.
    """

    def __init__(self, name: str, layout: Layout, space: Template, facts: Facts) -> None:
        self.name = name
        self.layout = layout
        self.facts = facts
        self.fresh_config = bytes(space.content)
        """Config space after power-on."""
        sizes = _Sizes()
        sizes.take(HEADER.size)
        config = sizes.take(len(space.content))
        files = {index: sizes.take(plan.file_size) for index, plan in layout.bars.items()}
        counts = sizes.take(8 * len(layout.doorbells))
        msix = layout.msix
        table = sizes.take(msix.pba_offset if msix else 0)
        pba = sizes.take(msix.pba_size if msix else 0)
        saved = [(item, sizes.take(item.size)) for item in dict.fromkeys(layout.saved)]
        items = [_item("config space", Kind.CONFIG, config)]
        items += [
            Item(item.name, Kind.REGISTER, files[index].start + item.offset, item.size)
            for index, plan in layout.bars.items()
            for item in plan.placed
            if isinstance(item, Register)
        ]
        items += [
            Item(item.name, Kind.REGISTER, config.start + each.at + item.offset, item.size)
            for each in layout.extended
            for item in each.placed
        ]
        items += [Item(bell.name, Kind.COUNT, counts.start + 8 * slot, 8) for slot, bell in enumerate(layout.doorbells)]
        if msix is not None:
            items += [_item("MSI-X table", Kind.TABLE, table), _item("MSI-X pending bits", Kind.PENDING, pba)]
        items += [Item(item.name, _kind(item), span.start, item.size, values=_values(item)) for item, span in saved]
        items += [
            Item(area.name, Kind.AREA, area.offset, area.size, index)
            for index, plan in layout.bars.items()
            for area in plan.areas
        ]
        self.description = Description(name, sizes.total, dict(facts), tuple(items))
        self._said = said = self.description.encode()

        self.fd = os.memfd_create(f"bellwire-state-{layout.where}"[:200], os.MFD_CLOEXEC)
        os.ftruncate(self.fd, sizes.total + len(said))
        self._map = mmap.mmap(self.fd, sizes.total + len(said))
        self._view = memoryview(self._map)
        self._view[sizes.total :] = said
        HEADER.pack_into(self._view, 0, *Header.of(self.description.size, said))

        self.words = self._view[: HEADER.size].cast("Q")
        """The header of the state file. The core itself counts the hooks that run, in word BUSY: that saves calls."""
        self.config = self._view[config]
        empty = self._view[:0]
        self.registers: dict[int | ExtendedCapability, memoryview] = {
            index: self._view[files[index]] if index in files else empty for index in range(BARS)
        }
        """The register file of each BAR, by its index, and the bytes of each extended capability."""
        self.cells: dict[int, memoryview[int]] = {
            index << 4 | size: file[: len(file) // size * size].cast(code)
            for index, file in self.registers.items()
            if isinstance(index, int)
            for size, code in CELLS.items()
        }
        """The register file of each BAR as numbers of 1, 2, 4 and 8 bytes, by the BAR's index << 4 | that size."""
        for extended in layout.extended:
            self.registers[extended.capability] = self.config[extended.at : extended.end]
        self._counts = self._view[counts].cast("Q")
        self.rings: dict[Doorbell, Rings] = {
            bell: Rings(self._counts, slot) for slot, bell in enumerate(layout.doorbells)
        }
        self.msix = self._view[table]
        self.pba = self._view[pba]
        self.saved: dict[Saved[Any] | SavedBytes, memoryview] = {item: self._view[span] for item, span in saved}

        self._large = {item: span.start for item, span in saved if isinstance(item, SavedBytes) and item.size >= LARGE}

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
    def files(self) -> StateFiles:
        """The descriptors of the files, for a process that shall take over. They stay this object's."""
        return StateFiles(self.fd, self.area_fds)

    @property
    def busy(self) -> bool:
        """Whether a hook is running. If the process has died meanwhile, the state is torn."""
        return bool(self.words[BUSY])

    def enter(self) -> None:
        """A hook starts. Hooks can nest, when a hook causes another one through the SDK."""
        self.words[BUSY] += 1

    def leave(self) -> None:
        """The hook has ended."""
        self.words[BUSY] -= 1

    @property
    def table_used(self) -> bool:
        """Whether the guest has written the MSI-X table here, rather than one that the client keeps."""
        return bool(self.words[TABLE_WORD] >> TABLE_USED & 1)

    @table_used.setter
    def table_used(self, used: bool) -> None:
        self.words[TABLE_WORD] = int(used) << TABLE_USED

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
            if saved in keep:
                continue
            if saved in self._large:
                fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, self._large[saved], saved.size)
            else:
                saved.clear(cell)
        self.leave()

    def snapshot(self) -> bytes:
        """The state as bytes: the header of the state file, the description, then what is written in file and areas."""
        return bytes(self._view[: HEADER.size]) + self._said + pack(self.extents())

    def restore(self, snapshot: bytes, *, client: bool = True) -> None:
        """Restore what :meth:`snapshot` gave, of this version of the device or of another one: by name.

        A StateError, and nothing has changed, if the snapshot is of another device, cut short, or torn; if a field
        cannot be converted; or, with a ``client``, if the guest has seen a device that is not quite this one.
        """
        header = Header.parse(memoryview(snapshot))
        header.refuse_torn("snapshot")
        said, records = header.split(snapshot)
        if said == self._said:
            self.enter()
            try:
                unpack(self.extents(), records)
                self.words[2] = header.flags
            finally:
                self.leave()
            return
        with Source.of_snapshot(header, said, records) as source:
            self._move(source, client=client)

    def take_over(self, files: StateFiles, *, client: bool, died: bool) -> bool:
        """Copy the state in ``files``, which another process has left. Returns whether it is torn, if it has ``died``.

        A StateError, and nothing has changed, as from :meth:`restore`. Areas that are alike in both are not copied:
        :meth:`inherit` them next.
        """
        with Source.of_files(files) as source:
            if not died:
                source.header.refuse_torn("the state")
            if source.said == self._said:
                self.enter()
                try:
                    copy(source.extent(HEADER.size, self.description.size), self.extents()[0])
                    self.words[2] = source.header.flags
                finally:
                    self.leave()
            else:
                self._move(source, client=client, skip=self._alike(source))
            return source.header.busy

    def inherit(self, files: StateFiles) -> None:
        """Lay the areas of ``files`` under those that are alike here, so that the guest's maps are this process's, too.

        Nothing happens if that is so already.
        """
        with Source.of_files(files) as source:
            for index in self._alike(source):
                if not os.path.sameopenfile(files.areas[index], self.area_fds[index]):
                    fd = fcntl.fcntl(files.areas[index], fcntl.F_DUPFD_CLOEXEC, 3)
                    map_over(self.area_files[index], fd)
                    os.close(self.area_fds[index])
                    self.area_fds[index] = fd

    def _move(self, source: Source, *, client: bool, skip: frozenset[int] = frozenset()) -> None:
        """Take by name what ``source`` has of this device. What it lacks has its value after power-on."""
        moves = move(source, self, client=client)
        self.enter()
        try:
            self.reset()
            self.config[:] = self.fresh_config
            for each in moves:
                if each.bar not in skip:
                    each.store()
        finally:
            self.leave()

    def _alike(self, source: Source) -> frozenset[int]:
        """The BARs whose areas are as those of ``source``: their files can be taken as they are."""
        different = {item.bar for item in {*source.description.areas()} ^ {*self.description.areas()}}
        return frozenset(
            index
            for index, view in self.area_files.items()
            if index not in different and os.fstat(source.files.areas[index]).st_size == len(view)
        )

    def extents(self) -> list[Extent]:
        """What a snapshot has: the state file behind its header, and each area."""
        extents = [Extent(self.fd, self._view, HEADER.size, self.description.size)]
        for area in self.areas:
            index = area.bar.index
            extents.append(Extent(self.area_fds[index], self.area_files[index], area.offset, area.offset + area.size))
        return extents

    def close(self) -> None:
        """Close the files. Memory that device code still has views of is freed with the last view."""
        views = [self.words, self._counts, self.msix, self.pba]
        views += [*self.cells.values(), *self.registers.values(), self.config]
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


def _item(name: str, kind: Kind, span: slice) -> Item:
    return Item(name, kind, span.start, span.stop - span.start)


def _values(saved: Saved[Any] | SavedBytes) -> str:
    if not isinstance(saved, Saved) or not isinstance(saved.default, Enum):
        return ""
    known = " ".join(str(value.value) for value in type(saved.default))
    return f"{'flags' if isinstance(saved.default, Flag) else 'one of'} {known}"[:LONGEST]


def _kind(saved: Saved[Any] | SavedBytes) -> Kind:
    return Kind.BYTES if isinstance(saved, SavedBytes) else _KINDS.get(type(saved.default), Kind.INT)
