"""A register map: BARs, registers, fields, doorbells and interrupts of a device, in the order of their offsets.

It is the form between the formats. A device class and a SystemRDL file are read into it; headers, SystemRDL, pages,
JSON and device files are written from it. Two maps are equal if a driver cannot tell them apart, down to their words.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

PLAIN, FLAGS, VALUES = "plain", "flags", "values"
"""What a register holds: a number, an IntFlag with fields, or one value of an IntEnum."""


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named number: an enumeration's value (``number`` starts at bit 0 of the field), or a mask of several bits."""

    name: str
    number: int
    description: str = ""


class Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``width`` adjacent bits of a register, from bit ``low`` on. ``values`` are the numbers that have names."""

    name: str
    low: int
    width: int
    description: str = ""
    values: tuple[Value, ...] = ()

    @property
    def mask(self) -> int:
        """The field's bits, at their place in the register."""
        return ((1 << self.width) - 1) << self.low


class Register(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="register", tag_field="type"):
    """``size`` bytes that a guest reads and writes as ``access`` says (the words of :class:`bellwire.Access`).

    ``writable`` has the bits that a guest can change. ``content`` is ``plain`` (a number), ``flags`` (``fields``, and
    ``masks`` of several of them) or ``values`` (one of ``values``); ``kind`` is then the name of the Python class.
    """

    name: str
    offset: int
    size: int
    access: str
    reset: int
    writable: int
    description: str = ""
    content: str = PLAIN
    kind: str = ""
    kind_description: str = ""
    fields: tuple[Field, ...] = ()
    masks: tuple[Value, ...] = ()
    values: tuple[Value, ...] = ()


class Doorbell(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="doorbell", tag_field="type"):
    """A place that a guest writes to start work; with ``match``, only a write of this number counts.

    ``value`` says that the device receives the number that is written.
    """

    name: str
    offset: int
    size: int
    match: int | None = None
    value: bool = False
    description: str = ""


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="range", tag_field="type"):
    """``size`` bytes whose accesses run hooks; ``bell`` is the size of each doorbell, if it is a row of them.

    ``posted`` says that a guest does not wait for its writes.
    """

    name: str
    offset: int
    size: int
    posted: bool = False
    bell: int = 0
    description: str = ""


class Area(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="area", tag_field="type"):
    """``size`` bytes of memory that a guest maps."""

    name: str
    offset: int
    size: int
    description: str = ""


class Block(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="block", tag_field="type"):
    """``count`` rows, ``stride`` bytes apart, of the same ``members``. Their offsets start at the row."""

    name: str
    offset: int
    count: int
    stride: int
    members: tuple[Register | Doorbell, ...]
    description: str = ""


Item = Register | Doorbell | Range | Area | Block


class BarMap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One base address register and what lies behind it, in order of offset; ``kind`` is ``memory`` or ``io``."""

    name: str
    index: int
    size: int
    kind: str = "memory"
    bits: int = 32
    prefetchable: bool = False
    fill: int = 0
    description: str = ""
    items: tuple[Item, ...] = ()


class Vectors(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """MSI-X: the number of vectors, and where the table lies if that is in one of the device's own BARs."""

    count: int
    bar: int | None = None
    offset: int = 0


class Map(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device: its identity (``class_code`` has 24 bits), its interrupts and its BARs."""

    name: str
    vendor: int
    device: int
    class_code: int
    revision: int
    subsystem_vendor: int
    subsystem: int
    description: str = ""
    msix: Vectors | None = None
    msi: int = 0
    intx: int = 0
    bars: tuple[BarMap, ...] = ()

    @property
    def registers(self) -> Iterator[Register]:
        """All registers, those of a block once."""
        for bar in self.bars:
            for item in bar.items:
                members = item.members if isinstance(item, Block) else (item,)
                yield from (member for member in members if isinstance(member, Register))


def full(size: int) -> int:
    """All bits of ``size`` bytes."""
    return (1 << 8 * size) - 1


def runs(mask: int) -> Iterator[tuple[int, int]]:
    """The runs of adjacent ones in ``mask``: the lowest bit of each, and its width."""
    at = 0
    while mask >> at:
        at += ((mask >> at) & -(mask >> at)).bit_length() - 1
        width = (~(mask >> at) & (mask >> at) + 1).bit_length() - 1
        yield at, width
        at += width


def order(items: list[Item]) -> tuple[Item, ...]:
    """The items in the order of their offsets; those that share a place, in the order of their names."""
    return tuple(sorted(items, key=lambda item: (item.offset, not isinstance(item, Register), item.name)))
