"""One register of SystemRDL, as the register and the doorbells that a device declares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from msgspec.structs import replace

from bellwire import Access
from bellwired.errors import CommandError
from bellwired.maps import register_map as maps
from bellwired.maps.names import Names, camel, plain
from bellwired.maps.rdl_access import CONSTANT, RC, RO, RW, W1C, W1S, WO, FieldAccess, combine
from bellwired.maps.rdl_nodes import folded, prop, words

LARGEST = 64  # bits
ON_WRITE = {"woclr": W1C, "woset": W1S}
HARDWARE = ("counter", "intr", "singlepulse", "stickybit", "sticky", "swwe", "swwel", "paritycheck")
"""Properties that say what hardware does: a hook has to do it."""
SPANS = ("value", "bits_")

Lose = Callable[[Any, str], None]


def read_register(node: Any, name: str, offset: int, lose: Lose) -> Iterator[maps.Register | maps.Doorbell]:
    """The declarations for the register ``node``. ``lose`` is called with each node that is not told in full."""
    width = node.get_property("regwidth")
    if width > LARGEST:
        lose(node, f"has {width} bits, and a register has at most {LARGEST}: it is left out")
        return
    size = width // 8
    for each, match, own in _rings(node, prop(node, "rings", ""), size):
        yield maps.Doorbell(each, offset, own, match)
    if prop(node, "doorbell", False):
        yield maps.Doorbell(name, offset, size, prop(node, "match"), prop(node, "value", False), words(node))
        return
    fields = list(node.fields())
    accesses = [FieldAccess(field.inst_name, _word(field, lose), _mask(field)) for field in fields]
    combined = combine(accesses, maps.full(size))
    access = prop(node, "access", combined.access)
    if access not in Access._value2member_map_:
        raise CommandError(f"{node.get_path()}: bellwire_access {access!r} is no access word")
    if prop(node, "access") is None:
        by_name = {field.inst_name: field for field in fields}
        for field_name, what in combined.lost:
            lose(by_name[field_name], what)
    register = maps.Register(
        name=name,
        offset=offset,
        size=size,
        access=access,
        reset=prop(node, "reset", sum(_reset(field, lose) for field in fields)),
        writable=prop(node, "writable", combined.writable),
        description=words(node),
    )
    yield _with_content(node, register, fields, lose)


def _with_content(node: Any, register: maps.Register, fields: list[Any], lose: Lose) -> maps.Register:
    kind = prop(node, "kind")
    masks = tuple(maps.Value(name, number) for name, number, _ in _rings(node, prop(node, "masks", ""), 0))
    whole = len(fields) == 1 and fields[0].lsb == 0
    if kind == "" or (kind is None and whole and fields[0].get_property("encode") is None and fields[0].msb > 0):
        about = words(fields[0]) if len(fields) == 1 else ""
        return replace(register, description=register.description or about)
    about = prop(node, "kind_desc", "")
    exact = kind is not None  # the file was made from a device, with the names that it has there
    kind = plain(kind) if kind else camel(register.name)
    if whole and (values := _encoded(fields[0], lose, exact)) and register.reset in {value.number for value in values}:
        return replace(register, content=maps.VALUES, kind=kind, kind_description=about, values=values)
    if masks and all(field.inst_name.startswith(SPANS) for field in fields):
        fields = []
    own = Names()
    found = tuple(
        maps.Field(
            _member(field, field.inst_name, own, lose, exact),
            field.lsb,
            field.width,
            words(field),
            _encoded(field, lose, exact),
        )
        for field in sorted(fields, key=lambda field: int(field.lsb))
    )
    masks = tuple(replace(mask, name=_member(node, mask.name, own, lose, exact=True)) for mask in masks)
    return replace(register, content=maps.FLAGS, kind=kind, kind_description=about, fields=found, masks=masks)


def _member(node: Any, name: str, own: Names, lose: Lose, exact: bool) -> str:
    """The name of a member of an enumeration: in upper case, unless it is to stay as it is."""
    wanted = plain(name if exact else name.upper())
    given = own.of_member(wanted)
    if given != wanted:
        lose(node, f"{name} is called {given}: Python has {wanted} for its own use, or another name is the same here")
    return given


def _encoded(field: Any, lose: Lose, exact: bool = False) -> tuple[maps.Value, ...]:
    encode = field.get_property("encode")
    if encode is None:
        return ()
    own = Names()
    return tuple(
        maps.Value(_member(field, each.name, own, lose, exact), int(each.value), folded(each.rdl_desc))
        for each in encode.members.values()
    )


def _rings(node: Any, text: str, size: int) -> Iterator[tuple[str, int, int]]:
    """``start=1 stop=2:8`` as names, numbers and sizes."""
    for word in text.split():
        name, _, number = word.partition("=")
        number, _, own = number.partition(":")
        try:
            yield plain(name), int(number, 0), int(own or size)
        except ValueError:
            raise CommandError(f"{node.get_path()}: expected NAME=NUMBER, not {word!r}") from None


def _mask(field: Any) -> int:
    return ((1 << field.width) - 1) << field.lsb  # type: ignore[no-any-return]


def _reset(field: Any, lose: Lose) -> int:
    value = field.get_property("reset")
    if value is None:
        return 0
    if not isinstance(value, int):
        lose(field, "its reset value is another field or signal: it is 0 here")
        return 0
    return value << field.lsb  # type: ignore[no-any-return]


def _word(field: Any, lose: Lose) -> str:
    """The access word for a field, and a report of what the word does not say."""
    sw, on_read, on_write = (field.get_property(name) for name in ("sw", "onread", "onwrite"))
    for name in HARDWARE:
        if field.get_property(name):
            lose(field, f"{name}: a hook has to do it")
            break
    if sw.name in ("rw1", "w1"):
        lose(field, f"sw = {sw.name}: it can be written more than once here")
    if on_read is not None and on_read.name != "rclr":
        lose(field, f"onread = {on_read.name}: a read hook has to do it")
    if on_write is not None and on_write.name not in ON_WRITE:
        lose(field, f"onwrite = {on_write.name}: a write hook has to do it")
    clears = on_read is not None and on_read.name == "rclr"
    match sw.name:
        case "r":
            if clears:
                return RC
            return RO if field.is_hw_writable or field.get_property("next") is not None else CONSTANT
        case "w" | "w1":
            return WO if on_write is None or on_write.name not in ON_WRITE else ON_WRITE[on_write.name]
    if clears:
        lose(field, "onread = rclr beside writes: a read hook has to do it")
    return RW if on_write is None else ON_WRITE.get(on_write.name, RW)
