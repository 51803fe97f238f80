"""Moves a state by name, from one version of a device's code to another.

What both have is kept; what is new has its value after power-on; what is gone is dropped. A field of another size or
type is converted where that is exact, and else the whole state is refused, with the field's name. What the guest has
set up in config space and MSI-X goes along only if the device looks the same to it (:mod:`.seen`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from bellwire.declare.access import Access
from bellwire.declare.bar import Area
from bellwire.declare.doorbell import Doorbell
from bellwire.declare.register import Register
from bellwire.declare.saved import FLOAT, Saved, SavedBytes
from bellwire.errors import StateError
from bellwire.model.description import IN_STATE, Item, Kind
from bellwire.model.extents import Extent, copy_to, last_written
from bellwire.model.seen import refusal
from bellwire.model.source import Source

if TYPE_CHECKING:
    from bellwire.model.state import State

Target = Register[Any] | Doorbell | Saved[Any] | SavedBytes | Area
_NUMBERS = {Kind.REGISTER, Kind.INT, Kind.BOOL, Kind.FLOAT}


class Move(NamedTuple):
    """One thing to store. ``bar`` is that of an area, else IN_STATE."""

    store: Callable[[], object]
    bar: int = IN_STATE


def move(source: Source, state: State, *, client: bool) -> list[Move]:
    """What to store in ``state``. Nothing is stored yet: a StateError says why ``source`` is refused."""
    description = source.description
    if description.device != state.name:
        raise StateError(f"the state is that of a device named {description.device}, not of {state.name}")
    differs = refusal(description.seen, state.facts)
    if differs and client:
        raise StateError(f"{state.name}: {differs}")
    moves = [] if differs else list(_set_up(source, state))
    theirs = description.by_name()
    for target in _targets(state):
        item = theirs.get(target.name)
        if item is not None:
            moves += _moved(source, item, target, state)
    return moves


def _set_up(source: Source, state: State) -> Iterator[Move]:
    """What the guest has set up in config space and MSI-X. The device looks the same, so sizes are the same, too."""
    views = {Kind.CONFIG: state.config, Kind.TABLE: state.msix, Kind.PENDING: state.pba}
    for item in source.description.items:
        if item.kind in views:
            view = views[item.kind]
            if item.size != len(view):
                _refuse(state, item.name, f"has {item.size} bytes, {len(view)} expected")
            yield Move(partial(_fill, view, source.place(item)))
    for each in state.layout.extended:  # their registers are moved by name: those that are new begin afresh
        for register in each.placed:
            yield Move(partial(register.store, state.registers[each.capability], register.reset))
    yield Move(partial(setattr, state, "table_used", bool(source.header.flags & 1)))


def _fill(view: memoryview, place: Extent) -> None:
    view[:] = place.view[place.start : place.stop]


def _targets(state: State) -> Iterator[Target]:
    layout = state.layout
    for plan in layout.bars.values():
        yield from (item for item in plan.placed if isinstance(item, Register | Doorbell | Area))
    for each in layout.extended:
        yield from each.placed
    yield from state.saved


def _moved(source: Source, item: Item, target: Target, state: State) -> Iterator[Move]:
    """What moves ``item`` to ``target``, which has the same name."""
    place = source.place(item)
    match target:
        case Register() if item.kind in _NUMBERS:
            if target.access not in (Access.CONSTANT, Access.RESERVED):
                value = _for_register(state, target, _number(item, place))
                yield Move(partial(target.store, state.registers[target.bar.index], value))
        case Saved() if item.kind in _NUMBERS:
            yield Move(partial(target.store, state.saved[target], _for_saved(state, target, _number(item, place))))
        case Doorbell() if item.kind is Kind.COUNT:
            yield Move(partial(state.rings[target].add, int(_number(item, place))))
        case SavedBytes() if item.kind is Kind.BYTES:
            _check_room(state, item, place, target.size)
            yield Move(partial(copy_to, place, state.saved[target]))
        case Area() if item.kind is Kind.AREA:
            _check_room(state, item, place, target.size)
            yield Move(partial(copy_to, place, state.areas[target]), target.bar.index)
        case _:
            _refuse(state, item.name, f"was a {item.kind.value} and is now a {type(target).__name__}")


def _number(item: Item, place: Extent) -> int | float:
    data = place.view[place.start : place.stop]
    if item.kind is Kind.FLOAT:
        value: float = FLOAT.unpack_from(data)[0]
        return value
    return int.from_bytes(data, "little", signed=item.kind in (Kind.INT, Kind.BOOL))


def _for_register(state: State, register: Register[Any], value: float) -> int:
    exact = _integer(state, register.name, value)
    if not 0 <= exact < 1 << 8 * register.size:
        _refuse(state, register.name, f"was {exact:#x}, which {register.size} bytes do not hold")
    return exact


def _for_saved(state: State, saved: Saved[Any], value: float) -> int | float:
    kind = type(saved.default)
    if kind is float:
        try:
            as_float = float(value)
        except OverflowError:
            as_float = float("inf")
        if as_float != value and value == value:  # a NaN equals nothing, and is kept
            _refuse(state, saved.name, f"was {value}, which a float does not hold exactly")
        return as_float
    exact = _integer(state, saved.name, value)
    try:
        same = int(kind(exact)) == exact
    except ValueError:  # an IntEnum without it
        same = False
    if not same:
        _refuse(state, saved.name, f"was {exact}, which is no {kind.__name__}")
    if not -(1 << 127) <= exact < 1 << 127:
        _refuse(state, saved.name, f"was {exact}, which 128 bits do not hold")
    return exact


def _integer(state: State, name: str, value: float) -> int:
    if not float(value).is_integer():  # nor are infinities and NaN
        _refuse(state, name, f"was {value}, which is no integer")
    return int(value)


def _check_room(state: State, item: Item, place: Extent, size: int) -> None:
    """Bytes that grow keep theirs at the start. They may shrink by what is zero."""
    needs = last_written(place)
    if needs > size:
        _refuse(state, item.name, f"had {item.size} bytes, of which {needs} are in use, and has {size} now")


def _refuse(state: State, name: str, why: str) -> NoReturn:
    raise StateError(
        f"{state.name}: {name} {why}. Give the new field another name, or reset the device before the change"
    )
