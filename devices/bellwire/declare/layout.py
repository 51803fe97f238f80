"""The layout of a device class: all its declarations, collected and checked once. Instances are built from it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bellwire.declare.access import Access
from bellwire.declare.bar import BARS, Area, Bar
from bellwire.declare.block import BlockArray, BlockMember
from bellwire.declare.capability import CapabilityLayout, ExtendedCapability, arrange, in_capability
from bellwire.declare.declared import Declared
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.hooks import Tie, collect
from bellwire.declare.interrupts import IntX, Msi, MsiX
from bellwire.declare.link import Link
from bellwire.declare.methods import check_methods
from bellwire.declare.option import Option
from bellwire.declare.power import Power
from bellwire.declare.register import Register
from bellwire.declare.rom import Rom
from bellwire.declare.saved import Saved, SavedBytes
from bellwire.declare.vendor import HEADER, VendorCapability
from bellwire.errors import DeclarationError

Placed = Register[Any] | Doorbell | IoRegion | Area | MsiX
PAGE = 4096
VENDOR_ROOM = 96  # bytes: half of the 192 that the capability list has; the standard capabilities may need the rest


@dataclass(frozen=True, slots=True)
class BarLayout:
    """One BAR and the declarations that lie behind it, in order of offset."""

    bar: Bar
    placed: tuple[Placed, ...]

    @property
    def file_size(self) -> int:
        """Size in bytes of the BAR's register file: from offset 0 to the end of the last register."""
        return max((item.offset + item.size for item in self.placed if isinstance(item, Register)), default=0)

    @property
    def areas(self) -> tuple[Area, ...]:
        """The areas that a guest may map, in order of offset."""
        return tuple(item for item in self.placed if isinstance(item, Area))

    @property
    def doorbells(self) -> tuple[Doorbell, ...]:
        """The doorbells, in order of offset."""
        return tuple(item for item in self.placed if isinstance(item, Doorbell))

    @property
    def ioregions(self) -> tuple[IoRegion, ...]:
        """The ioregions, in order of offset."""
        return tuple(item for item in self.placed if isinstance(item, IoRegion))


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything that one device class declares."""

    where: str
    bars: Mapping[int, BarLayout]
    saved: tuple[Saved[Any] | SavedBytes, ...]
    options: Mapping[str, Option[Any]]
    hooks: Mapping[Tie, str]
    msix: MsiX | None
    msix_bar: int
    msi: Msi | None
    intx: IntX | None
    vendor: tuple[VendorCapability, ...]
    power: Power | None
    link: Link | None
    extended: tuple[CapabilityLayout, ...]
    rom: Rom | None

    @property
    def doorbells(self) -> tuple[Doorbell, ...]:
        """The doorbells of all BARs, BAR by BAR."""
        return tuple(bell for plan in self.bars.values() for bell in plan.doorbells)

    @property
    def latest_bells(self) -> int:
        """The number of doorbells whose last value counts, those in rows included."""
        rows = [region for plan in self.bars.values() for region in plan.ioregions if region.latest]
        return sum(bell.latest for bell in self.doorbells) + sum(row.size // row.bell for row in rows)


def plan(device: type[Any]) -> Layout:
    """Collect and check what ``device`` and its bases declare. A DeclarationError says what is wrong."""
    where = device.__qualname__
    declared = _declarations(device)
    for item in declared.values():
        try:
            item.check(where)  # type: ignore[attr-defined]  # every kind has one; Declared itself is never assigned
        except DeclarationError:
            raise
        except TypeError as error:
            item.refuse(where, f"something in its declaration has a wrong type: {error}")
    check_methods(device)
    hooks = collect(device)
    bars = [item for item in declared.values() if isinstance(item, Bar)]
    taken = _bar_indices(where, bars)
    msix = _one(where, declared, MsiX)
    msix_bar = -1
    if msix is not None:
        if msix.bar is None:
            msix_bar = _free_index(where, taken)
            bars.append(_msix_bar(msix, msix_bar))
        elif msix.bar not in bars:
            msix.refuse(where, f"its BAR is not declared in {where}")
        else:
            msix_bar = msix.bar.index
    placed: dict[object, list[Placed]] = {bar.index: [] for bar in bars}
    blocks = [item for item in declared.values() if isinstance(item, BlockArray)]
    for item in declared.values():
        if isinstance(item, Register | Doorbell | IoRegion | Area | BlockArray) and not in_capability(item):
            if item.bar not in bars:
                item.refuse(where, f"its BAR is not declared in {where}")
            placed[item.bar.index] += item.items if isinstance(item, BlockArray) else [item]
    if msix is not None:
        placed[msix_bar].append(msix)
    layouts = {}
    for bar in sorted(bars, key=lambda bar: bar.index):
        items = sorted(placed[bar.index], key=lambda item: item.offset)
        _check_places(where, bar, items)
        layouts[bar.index] = BarLayout(bar, tuple(items))
    extended = tuple(arrange(where, declared.values()))
    for each in extended:
        _check_places(where, each.capability, each.placed)
    own = [register for each in extended for register in each.capability.registers]
    _check_hooks(device, hooks, {id(item) for item in (*declared.values(), *_members(blocks), *own)})
    _check_names(device, bars)
    for tie, name in hooks.items():
        _check_signature(where, tie, name, inspect.getattr_static(device, name), _place(device, name))
    layout = Layout(
        where=where,
        bars=layouts,
        saved=(
            *(item for item in declared.values() if isinstance(item, Saved | SavedBytes)),
            *(item for each in extended for item in each.capability.saved),
        ),
        options={item.name: item for item in declared.values() if isinstance(item, Option)},
        hooks=hooks | _hooks_of_rows(hooks),
        msix=msix,
        msix_bar=msix_bar,
        msi=_one(where, declared, Msi),
        intx=_one(where, declared, IntX),
        vendor=_vendor(where, [item for item in declared.values() if isinstance(item, VendorCapability)]),
        power=_one(where, declared, Power),
        link=_one(where, declared, Link),
        extended=extended,
        rom=_one(where, declared, Rom),
    )
    for each in extended:
        each.capability.check_among(where, layout)
    return layout


def _members(blocks: list[BlockArray[Any]]) -> Iterator[BlockMember]:
    for block in blocks:
        yield from block.members.values()


def _hooks_of_rows(hooks: Mapping[Tie, str]) -> dict[Tie, str]:
    """The ties of block members, repeated for each row of the block."""
    return {
        (event, row[target.word]): name
        for (event, target), name in hooks.items()
        if isinstance(target, BlockMember)
        for row in target.block.rows
    }


def _declarations(device: type[Any]) -> dict[str, Declared]:
    """The declarations by attribute name. Where two classes use a name, the most derived class counts."""
    found: dict[str, Declared] = {}
    own = next(base for base in device.__mro__ if base.__module__ == "bellwire.device")
    for name in own.__annotations__.keys() & vars(device).keys():
        hint = "say name= in the class line" if name == "name" else "choose another"
        raise DeclarationError(f"{device.__qualname__}.{name}: PciDevice has this name for its own use: {hint}")
    for ancestor in reversed(device.__mro__):
        for name, member in vars(ancestor).items():
            if isinstance(member, Declared):
                if hasattr(own, name):
                    member.refuse(device.__qualname__, "PciDevice has this name for its own use: choose another")
                found[name] = member
            elif name in found and not name.startswith("__"):
                raise DeclarationError(
                    f"{device.__qualname__}.{name} hides the declaration {found[name]}: rename one of them"
                )
    return found


def _check_names(device: type[Any], bars: list[Bar]) -> None:
    """Refuse what a BAR of this class has declared and no name refers to: mostly, another line has the same name."""
    for bar in bars:
        if vars(device).get(bar.name) is bar:
            for item in bar.made:
                if item.name == "?":
                    raise DeclarationError(
                        f"{device.__qualname__}: what is declared at {bar.name} + {item.offset:#x} has no name: "
                        "assign it to one, which no other line assigns to",
                        item.place,
                    )


def _bar_indices(where: str, bars: list[Bar]) -> set[int]:
    taken: dict[int, Bar] = {}
    for bar in bars:
        for index in range(bar.index, bar.index + (2 if bar.bits == 64 else 1)):
            if index in taken:
                bar.refuse(where, f"BAR {index} is already {taken[index].name}'s")
            taken[index] = bar
    return set(taken)


def _free_index(where: str, taken: set[int]) -> int:
    for index in reversed(range(BARS)):
        if index not in taken:
            return index
    raise DeclarationError(f"{where}: no BAR is left for the MSI-X table; give MsiX(..., bar=, offset=)")


def _msix_bar(msix: MsiX, index: int) -> Bar:
    size = PAGE
    while size < msix.size:
        size *= 2
    bar = Bar(index, size=size)
    bar.name = f"{msix.name}_table"
    return bar


def _one(where: str, declared: Mapping[str, Declared], kind: type[Any]) -> Any:
    found = [item for item in declared.values() if isinstance(item, kind)]
    if len(found) > 1:
        raise DeclarationError(f"{where} declares {kind.__name__} twice: {found[0].name} and {found[1].name}")
    return found[0] if found else None


def _vendor(where: str, found: list[VendorCapability]) -> tuple[VendorCapability, ...]:
    room = VENDOR_ROOM
    for item in found:
        room -= -(-(HEADER + item.size) // 4) * 4
        if room < 0:
            item.refuse(where, f"vendor-specific capabilities have {VENDOR_ROOM} bytes together, headers included")
    return tuple(found)


def _check_places(where: str, bar: Bar | ExtendedCapability, items: Sequence[Placed]) -> None:
    for item in items:
        if item.offset < 0 or item.offset + item.size > bar.size:
            item.refuse(where, f"{_span(item)} lies outside {bar.name}, which has {bar.size:#x} bytes")
    for before, item in _overlaps(items):
        if not _may_share(before, item):
            item.refuse(where, f"{_span(item)} overlaps {before.name}, {_span(before)}, in {bar.name}")


def _overlaps(items: Sequence[Placed]) -> Iterator[tuple[Placed, Placed]]:
    """The pairs of ``items`` that overlap. ``items`` must be in order of offset."""
    open_items: list[Placed] = []
    for item in items:
        open_items = [before for before in open_items if before.offset + before.size > item.offset]
        for before in open_items:
            yield before, item
        open_items.append(item)


def _may_share(one: Placed, other: Placed) -> bool:
    """Whether two items may overlap: doorbells of certain values may, each with others and with a register as wide."""
    values = [item.accepted for item in (one, other) if isinstance(item, Doorbell) and item.accepted is not None]
    registers = [item for item in (one, other) if isinstance(item, Register)]
    if one.offset != other.offset:
        return False
    if len(values) == 2:
        return one.size != other.size or set(values[0]).isdisjoint(values[1])
    return len(values) == len(registers) == 1 and one.size == other.size


def _span(item: Placed) -> str:
    return f"{item.offset:#x} to {item.offset + item.size - 1:#x}"


def _place(device: type[Any], method: str) -> tuple[str, int] | None:
    """The file and line of a method."""
    function = inspect.unwrap(inspect.getattr_static(device, method))
    return (function.__code__.co_filename, function.__code__.co_firstlineno) if inspect.isfunction(function) else None


def _check_hooks(device: type[Any], hooks: Mapping[Tie, str], known: set[int]) -> None:
    where = device.__qualname__
    for (event, target), method in hooks.items():
        place = _place(device, method)
        if id(target) not in known:
            if target.owner == "?":
                raise DeclarationError(
                    f"{where}.{method} is the {event} hook of a {type(target).__name__} without a name: "
                    "does the method have the name that was the declaration's?",
                    place,
                )
            raise DeclarationError(
                f"{where}.{method} is the {event} hook of {target}, which {where} does not have", place
            )
        if isinstance(target, BlockMember):
            target = target.block.rows[0][target.word]
        if isinstance(target, Register):
            if event == "write" and not target.access.takes_writes:
                raise DeclarationError(
                    f"{where}.{method} is the write hook of {target.name}, whose access is {target.access_word}: "
                    "no guest's write would run it",
                    place,
                )
            if event == "read" and target.access in (Access.WO, Access.CONSTANT, Access.RESERVED):
                raise DeclarationError(
                    f"{where}.{method} is the read hook of {target.name}, whose access is {target.access_word}: "
                    "no guest's read would run it",
                    place,
                )


def check_rung(where: str, layout: Layout) -> None:
    """Refuse a doorbell without a ring hook: the author most likely forgot the decorator."""
    for bell in layout.doorbells:
        if ("ring", bell) not in layout.hooks:
            name = re.sub(r"\[\d+\]", "", bell.name)  # a hook serves all rows of a block, so its name has no index
            bell.refuse(where, f"no method is tied to it: write @{name}.ring above the one that it runs")


def check_conventional(where: str, layout: Layout) -> None:
    """Refuse what only a PCI Express device has."""
    for item in (*([layout.link] if layout.link else ()), *(each.capability for each in layout.extended)):
        item.refuse(where, "only a PCI Express device has it, and the class line says express=False")


def _check_signature(where: str, tie: Tie, name: str, hook: object, place: tuple[str, int] | None) -> None:
    """Refuse a hook that does not take the arguments that it will get."""
    event, target = tie
    words = _arguments(event, target)
    if words is None or not inspect.isfunction(hook):
        return
    called = f"{where}.{name} is the {event} hook of {target.name}"
    if inspect.iscoroutinefunction(hook):
        raise DeclarationError(
            f"{called}: it is called, and never awaited: write a plain method (def, not async def)", place
        )
    if inspect.isgeneratorfunction(hook):
        raise DeclarationError(f"{called}: it is called, and never iterated: write a plain method (no yield)", place)
    try:
        inspect.signature(hook).bind("self", *words)
    except TypeError:
        raise DeclarationError(f"{called}: it is called as {name}({', '.join(('self', *words))})", place) from None


def _arguments(event: str, target: object) -> tuple[str, ...] | None:
    """The names of the arguments that the hook of an event gets after ``self``; None if they are not fixed."""
    match target, event:
        case (BlockMember(), _):
            words = _arguments(event, target.block.rows[0][target.word])
            return None if words is None else ("index", *words)
        case (Register(), "write"):
            return ("value",)
        case (Register(), "read"):
            return ()
        case (Doorbell(), _):
            return ("value",) if target.with_value else ()
        case (Power(), _):
            return ("state",)
        case (_, "request"):
            return ("vendor", "kind", "data")
        case (IoRegion(), "write"):
            return ("offset", "size", "value")
        case (IoRegion(), "ring"):
            return ("offset",)
        case (IoRegion() | VendorCapability(), _):
            return ("offset", "size")
        case _:
            return None
