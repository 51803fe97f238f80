"""Blocks: arrays of registers and doorbells, with one row for each queue, channel or port.

The SDK expands a block into plain registers and doorbells with names like ``queues[3].base``, so the model knows no
blocks. Hooks are the exception: one method serves all rows, and gets the index of the row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from bellwire.declare.declared import Declared
from bellwire.declare.doorbell import Doorbell, Rings
from bellwire.declare.hooks import mark
from bellwire.declare.register import Register
from bellwire.errors import DeclarationError

if TYPE_CHECKING:
    from bellwire.declare.bar import Bar
    from bellwire.device import PciDevice

Value = TypeVar("Value", bound=int)
Typed = TypeVar("Typed", bound=IntFlag | IntEnum)
Row = TypeVar("Row")
Hook = TypeVar("Hook", bound=Callable[..., Any])

MOST_ROWS = 4096
_OWN = {"device", "index", "bar", "offset", "count", "stride", "row_type", "members", "name", "owner", "place"}


class RegisterMember(Generic[Value]):
    """A register that every row has. Made by :func:`reg`. On a row it is the register's value."""

    def __init__(self, offset: int, kind: type[IntFlag | IntEnum] | None, **words: Any) -> None:
        self.offset = offset
        self._kind = kind
        self._words = words

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, row: None, owner: type[Any]) -> RegisterMember[Value]: ...
    @overload
    def __get__(self, row: Block, owner: type[Any]) -> Value: ...
    def __get__(self, row: Block | None, owner: type[Any]) -> Any:
        return self if row is None else row._items[self.name].__get__(row.device, type(row.device))

    def __set__(self, row: Block, value: int) -> None:
        register = row._items[self.name]
        assert isinstance(register, Register)
        register.__set__(row.device, value)

    def at(self, bar: Bar, start: int) -> Register[Any]:
        """The register of the row that starts at ``start`` of ``bar``."""
        return Register(bar, start + self.offset, self._kind, **self._words)


class DoorbellMember:
    """A doorbell that every row has. Made by :func:`doorbell`. On a row it tells how often it was rung."""

    def __init__(self, offset: int, **words: Any) -> None:
        self.offset = offset
        self._words = words

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self.name = name

    @overload
    def __get__(self, row: None, owner: type[Any]) -> DoorbellMember: ...
    @overload
    def __get__(self, row: Block, owner: type[Any]) -> Rings: ...
    def __get__(self, row: Block | None, owner: type[Any]) -> Any:
        return self if row is None else row._items[self.name].__get__(row.device, type(row.device))

    def __set__(self, row: Block, value: object) -> None:
        raise AttributeError(f"{row._items[self.name]} is a doorbell: the guest rings it")

    def at(self, bar: Bar, start: int) -> Doorbell:
        """The doorbell of the row that starts at ``start`` of ``bar``."""
        return Doorbell(bar, start + self.offset, **self._words)


Member = RegisterMember[Any] | DoorbellMember


@overload
def reg(
    offset: int, size: int = 4, *, access: str = "rw", reset: int = 0, writable: int | None = None
) -> RegisterMember[int]: ...
@overload
def reg(
    offset: int,
    size: int = 4,
    *,
    kind: type[Typed],
    access: str = "rw",
    reset: int = 0,
    writable: int | None = None,
) -> RegisterMember[Typed]: ...
def reg(offset: int, size: int = 4, *, kind: Any = None, **words: Any) -> RegisterMember[Any]:
    """A register of ``size`` bytes at ``offset`` of each row of a block; the keywords are those of :meth:`Bar.reg`."""
    words = {"access": "rw", "reset": 0, "writable": None} | words
    return RegisterMember(offset, kind, size=size, **words)


def doorbell(
    offset: int,
    *,
    size: int = 4,
    match: int | None = None,
    value: bool = False,
    values: range | None = None,
    latest: bool = False,
) -> DoorbellMember:
    """A doorbell at ``offset`` of each row of a block; the keywords are those of :meth:`bellwire.Bar.doorbell`."""
    return DoorbellMember(offset, size=size, match=match, value=value, values=values, latest=latest)


class Block:
    """One row of a block on an instance. A subclass declares the members of a row, with their types::

    class Queue(Block):
        base = reg(0x00, size=8)
        tail = doorbell(0x10)
    """

    __slots__ = ("_items", "device", "index")

    def __init__(self, device: PciDevice, index: int, items: Mapping[str, Register[Any] | Doorbell]) -> None:
        self.device = device
        """The device that the row belongs to."""
        self.index = index
        """The row's index, from 0."""
        self._items = items


class BlockMember(Declared):
    """``queues.tail``: the same register or doorbell of every row. Hooks are tied to it."""

    def __init__(self, block: BlockArray[Any], word: str, member: Member) -> None:
        self.block = block
        self.word = word
        self.member = member

    def write(self, hook: Hook) -> Hook:
        """``hook(self, index, value)``: as :meth:`Register.write`, for every row."""
        return self._tie(hook, "write", RegisterMember)

    def read(self, hook: Hook) -> Hook:
        """``hook(self, index) -> int``: as :meth:`Register.read`, for every row."""
        return self._tie(hook, "read", RegisterMember)

    def ring(self, hook: Hook) -> Hook:
        """``hook(self, index)`` or ``hook(self, index, value)``: as :meth:`Doorbell.ring`, for every row."""
        return self._tie(hook, "ring", DoorbellMember)

    def _tie(self, hook: Hook, event: str, kind: type[Any]) -> Hook:
        if not isinstance(self.member, kind):
            has = ".ring" if event != "ring" else ".read and .write"
            raise DeclarationError(f"{self.word} of the block has no .{event}: tie the method by {has}")
        return mark(hook, event, self)


class BlockArray(Declared, Generic[Row]):
    """``count`` rows, ``stride`` bytes apart. Made by :meth:`bellwire.Bar.block`.

    On the class, ``Device.queues[3].base`` is a register, and ``queues.base`` is what a hook is tied to. On an
    instance, ``self.queues[3].base`` is the register's value.
    """

    def __init__(
        self, bar: Bar, offset: int, kind: type[Row] | None, count: int, stride: int, members: Mapping[str, Member]
    ) -> None:
        self.bar = bar
        self.offset = offset
        self.count = count
        self.stride = stride
        self.row_type = _row_type(kind, members)
        self.members: dict[str, BlockMember] = {
            name: BlockMember(self, name, member)
            for name, member in vars(self.row_type).items()
            if isinstance(member, RegisterMember | DoorbellMember)
        }
        self._items: tuple[dict[str, Register[Any] | Doorbell], ...] = ()

    def __set_name__(self, owner: type[Any], name: str) -> None:
        super().__set_name__(owner, name)
        for word, member in self.members.items():
            member.name, member.owner = f"{self.name}.{word}", self.owner

    def check(self, where: str) -> None:
        """Refuse a block without rows or members, and rows that overlap. Each register and doorbell checks itself."""
        if not self.members:
            self.refuse(where, "a row has at least one register or doorbell")
        for name in self.members:
            if name in _OWN or hasattr(BlockArray, name):
                self.refuse(where, f"a block has {name} for its own use: choose another name")
        if not 1 <= self.count <= MOST_ROWS:
            self.refuse(where, f"a block has 1 to {MOST_ROWS} rows, not {self.count}")
        for item in self.rows[0].values():
            item.check(where)
        extent = max(item.offset + item.size for item in self.rows[0].values()) - self.offset
        if self.stride < extent:
            self.refuse(where, f"stride {self.stride:#x} is less than a row's {extent:#x} bytes")
        for item in self.items:
            item.check(where)

    @property
    def rows(self) -> tuple[dict[str, Register[Any] | Doorbell], ...]:
        """The registers and doorbells of each row, by the names that they have in the row."""
        if not self._items:
            self._items = tuple(self._row(index) for index in range(self.count))
        return self._items

    @property
    def items(self) -> Iterator[Register[Any] | Doorbell]:
        """The registers and doorbells of all rows, row by row."""
        for row in self.rows:
            yield from row.values()

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> BlockArray[Row]: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> Sequence[Row]: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Any:
        if device is None:
            return self
        rows = device.core.rows.get(self)
        if rows is None:
            rows = tuple(self.row_type(device, index, items) for index, items in enumerate(self.rows))
            device.core.rows[self] = rows
        return rows

    def __getitem__(self, index: int) -> Place:
        return Place(self.rows[index])

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Place]:
        return map(Place, self.rows)

    def __getattr__(self, name: str) -> BlockMember:
        members = vars(self).get("members", {})
        if name in members:
            found: BlockMember = members[name]
            return found
        raise AttributeError(f"a row of the block has no {name}: it has {', '.join(members)}", name=name, obj=self)

    def _row(self, index: int) -> dict[str, Register[Any] | Doorbell]:
        row: dict[str, Register[Any] | Doorbell] = {}
        for word, member in self.members.items():
            item = row[word] = member.member.at(self.bar, self.offset + index * self.stride)
            item.name, item.owner, item.place = f"{self.name}[{index}].{word}", self.owner, self.place
            item.row = index
        return row


class Place:
    """One row on the class: its attributes are the declared registers and doorbells."""

    __slots__ = ("_row",)

    def __init__(self, row: Mapping[str, Register[Any] | Doorbell]) -> None:
        self._row = row

    def __getattr__(self, name: str) -> Any:
        try:
            return self._row[name]
        except KeyError:
            raise AttributeError(f"a row of the block has no {name}: it has {', '.join(self._row)}") from None


def _row_type(kind: type[Any] | None, members: Mapping[str, Member]) -> type[Block]:
    """The class of the rows. Its ``__slots__`` are empty, so that assigning a misspelt attribute is an error."""
    content: dict[str, Any] = {}
    if kind is not None:
        if not inspect.isclass(kind) or not issubclass(kind, Block):
            raise DeclarationError(f"a block's rows are described by a subclass of Block, not by {kind!r}")
        for ancestor in reversed(kind.__mro__[: kind.__mro__.index(Block)]):
            content |= vars(ancestor)
    for name, member in members.items():
        if not isinstance(member, RegisterMember | DoorbellMember):
            raise DeclarationError(f"{name} of the block is neither reg(...) nor doorbell(...)")
        content[name] = member
    content = {name: value for name, value in content.items() if name not in ("__dict__", "__weakref__")}
    return type(kind.__name__ if kind else "Row", (Block,), content | {"__slots__": ()})
