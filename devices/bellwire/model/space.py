"""Accesses to a BAR, or to extended config space. An access is split at the edges of declarations, one part a cell."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from bellwire.declare.access import Access
from bellwire.declare.bar import Area
from bellwire.declare.capability import END, HEADER, START, CapabilityLayout
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.layout import BarLayout
from bellwire.declare.register import Register
from bellwire.errors import GuestError
from bellwire.model.trouble import note, number
from vfio_user import Reader, Writer

if TYPE_CHECKING:
    from bellwire.model.core import Core

WIDEST = 8
_NO_CELLS = memoryview(b"")
_STORED = frozenset({Access.RW, Access.RO, Access.W1C, Access.W1S})  # a read gives what the register file holds


class Cell(Protocol):
    """A part of a BAR at run time. ``first`` counts from the start of the cell; an access never leaves the cell."""

    start: int
    size: int

    def read(self, first: int, count: int) -> bytes:
        """A guest's read of ``count`` bytes."""

    def write(self, first: int, data: memoryview) -> None:
        """A guest's write of ``data``."""


class Space:
    """``size`` bytes of one device: a BAR, or extended config space. Holes between cells read as ``fill``, a byte.

    Writes to holes are dropped.
    """

    def __init__(self, size: int, fill: int, cells: Iterable[Cell]) -> None:
        self.size = size
        self._fill = bytes([fill])
        self._cells = sorted(cells, key=lambda cell: cell.start)
        self._starts = [cell.start for cell in self._cells]
        self._exact = {cell.start << 4 | cell.size: cell for cell in self._cells if cell.size <= WIDEST}

    def read(self, offset: int, count: int) -> bytes:
        """A guest's read of ``count`` bytes. The caller has checked the bounds."""
        if count <= WIDEST:
            cell = self._exact.get(offset << 4 | count)
            if cell is not None:
                return cell.read(0, count)
        parts = []
        end = offset + count
        while offset < end:
            cell, stop = self._at(offset, end)
            if cell is None:
                parts.append(self._fill * (stop - offset))
            else:
                parts.append(cell.read(offset - cell.start, stop - offset))
            offset = stop
        return b"".join(parts)

    def reader(self, offset: int, count: int) -> Reader:
        """A callable that does what :meth:`read` does at this place, without a search for the cell."""
        cell = self._exact.get(offset << 4 | count) if count <= WIDEST else None
        if cell is None:
            return Reader(functools.partial(self.read, offset, count))
        stored = cell.stored if isinstance(cell, RegisterCell) else None
        return Reader(functools.partial(cell.read, 0, count)) if stored is None else Reader(stored, plain=True)

    def writer(self, offset: int, count: int) -> Writer:
        """A callable that does what :meth:`write` does at this place, without a search for the cell."""
        cell = self._exact.get(offset << 4 | count) if count <= WIDEST else None
        if cell is None:
            return functools.partial(self.write, offset)
        whole = cell.replaced if isinstance(cell, RegisterCell) else None
        return functools.partial(cell.write, 0) if whole is None else whole

    def write(self, offset: int, data: memoryview) -> None:
        """A guest's write of ``data``. The caller has checked the bounds."""
        count = len(data)
        if count <= WIDEST:
            cell = self._exact.get(offset << 4 | count)
            if cell is not None:
                cell.write(0, data)
                return
        start, end = offset, offset + count
        while offset < end:
            cell, stop = self._at(offset, end)
            if cell is not None:
                cell.write(offset - cell.start, data[offset - start : stop - start])
            offset = stop

    def _at(self, offset: int, end: int) -> tuple[Cell | None, int]:
        """The cell at ``offset`` (None for a hole), and the offset at which the cell, the hole or the access ends."""
        slot = bisect_right(self._starts, offset)
        if slot:
            cell = self._cells[slot - 1]
            stop = cell.start + cell.size
            if offset < stop:
                return cell, min(stop, end)
        return None, min(self._starts[slot], end) if slot < len(self._starts) else end


def of_bar(core: Core, plan: BarLayout) -> Space:
    """The space of a BAR."""
    return Space(plan.bar.size, plan.bar.fill, _cells(core, plan))


def of_extended(core: Core, layouts: Iterable[CapabilityLayout]) -> Space:
    """The space of config space from 100h on: offset 0 is 100h."""
    cells: list[Cell] = []
    for layout in layouts:
        start = layout.at - START
        cells.append(ConstantCell(start, layout.header.to_bytes(HEADER, "little")))
        cells += [RegisterCell(core, register, start) for register in layout.placed]
    return Space(END - START, 0, cells)


def _cells(core: Core, plan: BarLayout) -> list[Cell]:
    """The cells of one BAR. Doorbells and a register that share an offset become one cell."""
    cells: list[Cell] = []
    shared: dict[int, list[Doorbell]] = {}
    registers: dict[int, RegisterCell] = {}
    for item in plan.placed:
        match item:
            case Register():
                registers[item.offset] = RegisterCell(core, item)
            case Doorbell():
                shared.setdefault(item.offset, []).append(item)
            case IoRegion():
                cells.append(IoRegionCell(core, item))
            case Area():
                cells.append(MemoryCell(item.offset, core.state.areas[item]))
            case _:
                cells.append(TableCell(core, item.offset, item.pba_offset))
                cells.append(PendingCell(core, item.offset + item.pba_offset, item.pba_size))
    for offset, bells in shared.items():
        cells.append(DoorbellCell(core, bells, registers.pop(offset, None)))
    return [*cells, *registers.values()]


class RegisterCell:
    """A register at run time: applies its access word, and runs its hooks."""

    def __init__(self, core: Core, register: Register[Any], base: int = 0) -> None:
        self.start = base + register.offset
        self.size = register.size
        self._core = core
        self._register = register
        self._access = register.access
        self._takes_writes = register.access.takes_writes
        whole = register.writable == (1 << 8 * register.size) - 1
        self._overwrites = self._takes_writes and whole and self._access not in (Access.W1C, Access.W1S)
        self._file = core.state.registers[register.bar.index]
        self._mask = (1 << 8 * self.size) - 1
        self._nothing = int.from_bytes(bytes([register.bar.fill]) * self.size, "little")
        self._read_hook: Callable[[], int] | None = core.hook(("read", register))
        self._write_hook: Callable[[Any], None] | None = core.hook(("write", register))
        plain = self._read_hook is None and self._access in _STORED
        look: Callable[[slice], memoryview] = self._file.__getitem__
        span = slice(register.offset, register.offset + self.size)
        self.stored: Callable[[], memoryview] | None = functools.partial(look, span) if plain else None
        """Gives the register's bytes, if a guest's read gives exactly those; else None."""
        simple = self._overwrites and register.kind is None and register.cell is not None
        self.replaced: Callable[[memoryview], None] | None = self._replace if simple else None
        """Takes a guest's write of the whole register, if it is stored as it is; else None."""
        key, self._at = register.cell or (-1, 0)
        self._cells = core.state.cells.get(key, _NO_CELLS)

    def read(self, first: int, count: int) -> bytes:
        """A guest's read: the hook or the access word decides what it gives."""
        if self.stored is not None:
            return self.stored()[first : first + count].tobytes()
        register = self._register
        match self._access:
            case Access.WO | Access.RESERVED:
                value = self._nothing
            case Access.CONSTANT:
                value = register.reset
            case Access.UNIMPLEMENTED:
                self._core.unimplemented("read", register)
                value = register.reset
            case _:
                value = register.load(self._file)
        if self._read_hook is not None:
            try:
                value = number(self._read_hook, self._core.call(self._read_hook)) & self._mask
            except Exception as error:
                note(error, f"read of {register}")
                raise
        if self._access is Access.RC:
            register.store(self._file, register.load(self._file) & ~_bytes_mask(first, count))
        return value.to_bytes(self.size, "little")[first : first + count]

    def write(self, first: int, data: memoryview) -> None:
        """A guest's write: it is stored as the access word says, then the hook runs."""
        access = self._access
        if not self._takes_writes:
            if access is Access.UNIMPLEMENTED:
                self._core.unimplemented("write", self._register)
            return
        register = self._register
        value = int.from_bytes(data, "little")
        if self._overwrites and len(data) == self.size:
            stored = value
        else:
            value, stored = self._combined(first, len(data), value)
        if register.kind is not None:
            try:
                register.typed(stored)
                if self._write_hook is not None:
                    value = register.typed(value)
            except ValueError:
                doing = f"write of {value:#x} to {register}"
                wrong = GuestError(f"{doing}: {register.kind.__name__} has no such value")
                note(wrong, doing)
                raise wrong from None
        register.store(self._file, stored)
        if self._write_hook is not None:
            try:
                self._core.call(self._write_hook, value)
            except Exception as error:
                note(error, f"write of {int(value):#x} to {register}")
                raise

    def _replace(self, data: memoryview) -> None:
        value = int.from_bytes(data, "little")
        self._cells[self._at] = value
        if self._write_hook is not None:
            try:
                self._core.call(self._write_hook, value)
            except Exception as error:
                note(error, f"write of {value:#x} to {self._register}")
                raise

    def _combined(self, first: int, count: int, value: int) -> tuple[int, int]:
        """What the guest has written and what is to be stored, if a write does not replace the whole register."""
        register, access = self._register, self._access
        writable, before = register.writable, register.load(self._file)
        if count != self.size:
            touched = _bytes_mask(first, count)
            writable &= touched
            value <<= 8 * first
            if access is Access.RW:
                value |= before & ~touched
        if access is Access.W1C:
            return value, before & ~(value & writable)
        if access is Access.W1S:
            return value, before | value & writable
        return value, before & ~writable | value & writable


class ConstantCell:
    """Bytes that never change."""

    def __init__(self, start: int, content: bytes) -> None:
        self.start = start
        self.size = len(content)
        self._content = content

    def read(self, first: int, count: int) -> bytes:
        """A guest's read of the bytes."""
        return self._content[first : first + count]

    def write(self, first: int, data: memoryview) -> None:
        """Drop a guest's write."""


class DoorbellCell:
    """The doorbells at one offset, rung by a message, and the register at the same offset, if there is one."""

    def __init__(self, core: Core, bells: list[Doorbell], register: RegisterCell | None) -> None:
        self.start = bells[0].offset
        self.size = max(bell.size for bell in bells)
        self._core = core
        self._bells = [(bell, core.tally.ring("message", bell.name)) for bell in bells]
        self._register = register
        self._nothing = bytes([bells[0].bar.fill])

    def read(self, first: int, count: int) -> bytes:
        """A guest's read: of the register at this offset, or of the BAR's ``fill``."""
        return self._nothing * count if self._register is None else self._register.read(first, count)

    def write(self, first: int, data: memoryview) -> None:
        """Ring the doorbells that match, as KVM would. A write that matches none goes to the register."""
        if first == 0:
            value = int.from_bytes(data, "little")
            for bell, rings in self._bells:
                accepted = bell.accepted
                if accepted is not None and (len(data) != bell.size or value not in accepted):
                    continue
                rings[0] += 1
                if bell.with_value:
                    self._core.ring_value(bell, value)
                else:
                    self._core.ring(bell, 1)
                return
        if self._register is not None:
            self._register.write(first, data)


class IoRegionCell:
    """An ioregion that a client accesses by messages."""

    def __init__(self, core: Core, region: IoRegion) -> None:
        self.start = region.offset
        self.size = region.size
        self._core = core
        self._region = region
        self._rings = core.tally.ring("message", region.name) if region.bell else None

    def read(self, first: int, count: int) -> bytes:
        """A guest's read. The hook gets a long read in pieces of at most 8 bytes."""
        return b"".join(
            self._core.ioregion_read(self._region, first + at, min(WIDEST, count - at)).to_bytes(
                min(WIDEST, count - at), "little"
            )
            for at in range(0, count, WIDEST)
        )

    def write(self, first: int, data: memoryview) -> None:
        """A guest's write. The hook gets it in pieces of at most 8 bytes; in a row of doorbells each piece rings."""
        for at in range(0, len(data), WIDEST):
            piece = data[at : at + WIDEST]
            if self._rings is not None:
                self._rings[0] += 1
            self._core.ioregion_write(self._region, first + at, len(piece), int.from_bytes(piece, "little"))


class MemoryCell:
    """An area that a client accesses by messages. Every client may do so, even after it has mapped the area."""

    def __init__(self, start: int, view: memoryview) -> None:
        self.start = start
        self.size = len(view)
        self._view = view

    def read(self, first: int, count: int) -> bytes:
        """A guest's read of the area."""
        return bytes(self._view[first : first + count])

    def write(self, first: int, data: memoryview) -> None:
        """A guest's write to the area."""
        self._view[first : first + len(data)] = data


class TableCell:
    """The MSI-X table, for clients that forward its accesses."""

    def __init__(self, core: Core, start: int, size: int) -> None:
        self.start = start
        self.size = size
        self._signals = core.signals

    def read(self, first: int, count: int) -> bytes:
        """A guest's read of the table."""
        return self._signals.read_table(first, count)

    def write(self, first: int, data: memoryview) -> None:
        """A guest's write to the table. Pending vectors that it unmasks are sent."""
        self._signals.write_table(first, data)


class PendingCell:
    """The MSI-X pending bits, which a guest can only read."""

    def __init__(self, core: Core, start: int, size: int) -> None:
        self.start = start
        self.size = size
        self._signals = core.signals

    def read(self, first: int, count: int) -> bytes:
        """A guest's read of the pending bits."""
        return self._signals.read_pending(first, count)

    def write(self, first: int, data: memoryview) -> None:
        """Drop a guest's write: PCI 3.0 §6.8.2.10 leaves its result undefined."""


def _bytes_mask(first: int, count: int) -> int:
    return ((1 << 8 * count) - 1) << 8 * first
