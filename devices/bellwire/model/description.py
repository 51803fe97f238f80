"""The description in a state file: what lies where in it, by name. So newer code can read what older code has left.

It is JSON, behind all that it describes. A state file may come from elsewhere, so a description is untrusted: it has a
limit, msgspec checks its types, and :func:`parse` that everything lies inside the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Annotated, NoReturn

import msgspec
from msgspec import Meta, Struct

from bellwire.declare.bar import BARS, LARGEST_MEMORY
from bellwire.declare.register import LARGEST
from bellwire.declare.saved import CELL
from bellwire.errors import StateError

MOST_BYTES = 16 << 20
"""The limit of a description: that of some 300000 registers."""
MOST_STATE = BARS * LARGEST_MEMORY + (64 << 30)
"""The limit of a state file: the registers of six BARs of the largest size, and saved fields."""
IN_STATE = -1

LONGEST = 4096
Text = Annotated[str, Meta(max_length=LONGEST)]
Place = Annotated[int, Meta(ge=0, le=MOST_STATE)]


class Kind(Enum):
    """What an item holds, and so how its bytes are read."""

    CONFIG = "config space"
    TABLE = "MSI-X table"
    PENDING = "MSI-X pending bits"
    REGISTER = "register"
    COUNT = "doorbell"
    INT = "int"
    BOOL = "bool"
    FLOAT = "float"
    BYTES = "bytes"
    AREA = "area"


_SIZES = {Kind.INT: CELL, Kind.BOOL: CELL, Kind.FLOAT: CELL, Kind.COUNT: 8}


class Item(Struct, frozen=True, array_like=True):
    """``size`` bytes at ``at``: of the state file, or of the area file of BAR ``bar``.

    ``values`` says what a saved enumeration can be: another one may not have a value that this one has.
    """

    name: Text
    kind: Kind
    at: Place
    size: Place
    bar: Annotated[int, Meta(ge=IN_STATE, lt=BARS)] = IN_STATE
    values: Text = ""


class Description(Struct, frozen=True):
    """What a state file of ``size`` bytes holds. ``seen`` is what the device's guest has seen: see :mod:`.seen`."""

    device: Text
    size: Place
    seen: dict[Text, Text]
    items: tuple[Item, ...]

    def encode(self) -> bytes:
        """The description as a state file has it. A StateError if it is too long."""
        data = msgspec.json.encode(self)
        if len(data) > MOST_BYTES:
            raise StateError(f"{self.device}: its description takes {len(data)} bytes, at most {MOST_BYTES}")
        return data

    def by_name(self) -> dict[str, Item]:
        """The items by their names."""
        return {item.name: item for item in self.items}

    def areas(self) -> Iterable[Item]:
        """The areas, in order of BAR and offset."""
        return (item for item in self.items if item.kind is Kind.AREA)


def parse(data: bytes | memoryview, first: int) -> Description:
    """Read an untrusted description. A StateError names what is wrong. Items of the state file begin at ``first``."""
    try:
        found = msgspec.json.decode(data, type=Description)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StateError(f"the state does not describe itself: {error}") from None
    if found.size < first:
        raise StateError(f"the state does not describe itself: a file of {found.size} bytes has no room for its header")
    if len(found.by_name()) < len(found.items):
        raise StateError("the state does not describe itself: two items have one name")
    for item in found.items:
        _check(found, item, first)
    return found


def _check(found: Description, item: Item, first: int) -> None:
    if (item.bar == IN_STATE) is (item.kind is Kind.AREA):
        _refuse(item, f"BAR {item.bar}")
    start, end = (0, LARGEST_MEMORY) if item.kind is Kind.AREA else (first, found.size)
    if not start <= item.at <= item.at + item.size <= end:
        _refuse(item, f"{item.size} bytes at {item.at:#x}, from {start:#x} to {end:#x} expected")
    if item.kind is Kind.REGISTER and not 1 <= item.size <= LARGEST:
        _refuse(item, f"a register of {item.size} bytes")
    if item.size != _SIZES.get(item.kind, item.size):
        _refuse(item, f"a {item.kind.value} of {item.size} bytes")


def _refuse(item: Item, why: str) -> NoReturn:
    raise StateError(f"the state describes {item.name} wrongly: {why}")
