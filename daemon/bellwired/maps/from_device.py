"""The register map of a device class."""

from __future__ import annotations

import sys
from enum import IntEnum, IntFlag
from typing import Any

from msgspec.structs import replace

from bellwire import Area, Doorbell, IoRegion, PciDevice, Register
from bellwire.declare.block import BlockArray
from bellwire.declare.interrupts import MsiX
from bellwire.declare.layout import BarLayout, Layout
from bellwired.maps import documented
from bellwired.maps import register_map as maps
from bellwired.maps.names import class_of_values


def read(device: type[PciDevice]) -> maps.Map:
    """The map of a complete device class. Vendor-specific capabilities are not part of it: they lie in config space."""
    identity, layout = device.identity, device.layout
    assert identity is not None  # find_device() gives complete devices only
    bars = [plan for plan in layout.bars.values() if layout.msix is None or plan.bar.index != _own_table(layout)]
    return maps.Map(
        name=device.name,
        description=documented.of_class(device),
        vendor=identity.vendor,
        device=identity.device,
        class_code=identity.class_code,
        revision=identity.revision,
        subsystem_vendor=identity.subsystem_vendor,
        subsystem=identity.subsystem,
        msix=_vectors(layout),
        msi=layout.msi.count if layout.msi else 0,
        intx=layout.intx.pin if layout.intx else 0,
        bars=tuple(_bar(device, plan) for plan in bars),
    )


def _own_table(layout: Layout) -> int:
    """The index of the BAR that the SDK has made for the MSI-X table; -1 if the table lies in a declared one."""
    return layout.msix_bar if layout.msix is not None and layout.msix.bar is None else -1


def _vectors(layout: Layout) -> maps.Vectors | None:
    if layout.msix is None:
        return None
    if layout.msix.bar is None:
        return maps.Vectors(layout.msix.count)
    return maps.Vectors(layout.msix.count, layout.msix.bar.index, layout.msix.offset)


def _bar(device: type[PciDevice], plan: BarLayout) -> maps.BarMap:
    bar = plan.bar
    blocks = {
        member.name: member
        for ancestor in reversed(device.__mro__)
        for member in vars(ancestor).values()
        if isinstance(member, BlockArray) and member.bar is bar
    }
    items: list[maps.Item] = [_block(block) for block in blocks.values()]
    items += [
        _item(item, item.name, item.offset, documented.description(item))
        for item in plan.placed
        if item.row is None and not isinstance(item, MsiX)
    ]
    return maps.BarMap(
        name=bar.name,
        index=bar.index,
        size=bar.size,
        kind="io" if bar.io else "memory",
        bits=bar.bits,
        prefetchable=bar.prefetchable,
        fill=bar.fill,
        description=documented.description(bar),
        items=maps.order(items),
    )


def _block(block: BlockArray[Any]) -> maps.Block:
    about = documented.of_members(block.row_type)
    members = [
        _item(item, word, item.offset - block.offset, about.get(word, "")) for word, item in block.rows[0].items()
    ]
    return maps.Block(
        name=block.name,
        offset=block.offset,
        count=block.count,
        stride=block.stride,
        members=tuple(sorted(members, key=lambda member: (member.offset, member.name))),
        description=documented.description(block),
    )


def _item(item: object, name: str, offset: int, about: str) -> Any:
    match item:
        case Register():
            return _register(item, name, offset, about)
        case Doorbell():
            return maps.Doorbell(name, offset, item.size, item.match, item.value, about)
        case IoRegion():
            return maps.Range(name, offset, item.size, item.posted, item.bell, about)
        case Area():
            return maps.Area(name, offset, item.size, about)
        case _:
            raise AssertionError(f"{item} is no part of a map")


def _register(item: Register[Any], name: str, offset: int, about: str) -> maps.Register:
    shared = maps.Register(name, offset, item.size, item.access_word, item.reset, item.writable, about)
    if item.kind is None:
        return shared
    words = {"kind": item.kind.__name__, "kind_description": documented.of_class(item.kind)}
    if issubclass(item.kind, IntEnum):
        return replace(shared, content=maps.VALUES, values=named(item.kind), **words)
    fields, masks = split(item.kind)
    return replace(shared, content=maps.FLAGS, fields=fields, masks=masks, **words)


def split(kind: type[IntFlag]) -> tuple[tuple[maps.Field, ...], tuple[maps.Value, ...]]:
    """The fields of a class of flags, and its masks: members that overlap others, or whose bits are not adjacent."""
    about = documented.of_members(kind)
    members = {name: int(member) for name, member in kind.__members__.items()}
    single = sum({number for number in members.values() if number.bit_count() == 1})
    taken = single
    fields: list[maps.Field] = []
    masks = []
    for name, number in members.items():
        spans = list(maps.runs(number))
        one = number.bit_count() == 1 and not any(field.mask == number for field in fields)
        if one or (len(spans) == 1 and not number & taken):
            taken |= number
            ((low, width),) = spans
            fields.append(maps.Field(name, low, width, about.get(name, ""), _values(kind, name)))
        else:
            masks.append(maps.Value(name, number, about.get(name, "")))
    return tuple(sorted(fields, key=lambda field: field.low)), tuple(masks)


def _values(kind: type[IntFlag], field: str) -> tuple[maps.Value, ...]:
    """The values of the field ``MODE`` of ``Control``: an IntEnum ``ControlMode`` beside it names them."""
    found = getattr(sys.modules.get(kind.__module__), class_of_values(kind.__name__, field), None)
    return named(found) if isinstance(found, type) and issubclass(found, IntEnum) else ()


def named(kind: type[IntEnum]) -> tuple[maps.Value, ...]:
    """The members of an IntEnum."""
    about = documented.of_members(kind)
    return tuple(maps.Value(name, int(member), about.get(name, "")) for name, member in kind.__members__.items())
