"""A register: a name, a type and an address. Its bytes lie in the device's state, never in an attribute."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from bellwire.declare.access import Access
from bellwire.declare.declared import Declared, is_power_of_two
from bellwire.declare.flags import Parts
from bellwire.declare.hooks import mark

if TYPE_CHECKING:
    from bellwire.declare.bar import Bar
    from bellwire.declare.capability import ExtendedCapability
    from bellwire.device import PciDevice

Value = TypeVar("Value", bound=int)
WriteHook = TypeVar("WriteHook", bound=Callable[[Any, Any], None])
ReadHook = TypeVar("ReadHook", bound=Callable[[Any], int])

LARGEST = 8
MOST_VALUES = 4096
_FORMATS = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}
CELLS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
"""How :meth:`memoryview.cast` calls numbers of so many bytes. x86 stores them as PCI has them: little-endian."""


class Register(Declared, Generic[Value]):
    """``size`` bytes at ``offset`` of a BAR or of an extended capability. Made by their ``reg`` methods.

    On the class it is the declaration, with its address. On an instance it is the register's value. When device code
    assigns it, no hook runs, the access word does not matter, and the value is cut to the register's size. Only a
    ``constant`` register refuses the assignment, with an AttributeError.

    A guest's access may be narrower than the register: it then reads or writes only those bytes. The SDK splits an
    access that is wider, or that touches two registers, at the edges of the registers, from the lowest address up.
    """

    def __init__(
        self,
        bar: Bar | ExtendedCapability,
        offset: int,
        kind: type[IntFlag | IntEnum] | None,
        *,
        size: int,
        access: str,
        reset: int,
        writable: int | None,
        sticky: bool = False,
    ) -> None:
        self.bar = bar
        self.sticky = sticky
        self.offset = offset
        self.size = size
        self.kind = kind
        self.reset = int(reset)
        self.access_word = access
        self.access = Access(access) if access in Access._value2member_map_ else Access.RESERVED
        self._constant = self.access is Access.CONSTANT
        self._mask = (1 << 8 * max(size, 0)) - 1
        self.writable = self._mask if writable is None else writable
        self._struct = struct.Struct(_FORMATS[size]) if size in _FORMATS else None
        self.cell: tuple[int, int] | None = None
        """The key of its numbers in :attr:`State.cells`, and its place there. Not every register has one."""
        if size in CELLS and offset % size == 0 and isinstance(bar.index, int):
            self.cell = bar.index << 4 | size, offset // size

    def check(self, where: str) -> None:
        """Refuse an access word, a size, an offset or a reset value that no register can have."""
        if self.access_word not in Access._value2member_map_:
            words = ", ".join(mode.value for mode in Access)
            self.refuse(where, f"access {self.access_word!r} is none of {words}")
        if not 1 <= self.size <= LARGEST:
            self.refuse(where, f"a register has 1 to {LARGEST} bytes, not {self.size}")
        if is_power_of_two(self.size) and self.offset % self.size:
            self.refuse(
                where,
                f"offset {self.offset:#x} is misaligned: a {self.size}-byte register lies at a multiple of {self.size}",
            )
        if not 0 <= self.reset <= self._mask:
            self.refuse(where, f"reset value {self.reset:#x} does not fit in {self.size} bytes")
        kind: object = self.kind
        if kind is not None and not (isinstance(kind, type) and issubclass(kind, IntFlag | IntEnum)):
            self.refuse(where, f"its kind is an IntFlag or an IntEnum, not {kind!r}")
        try:
            self.typed(self.reset)
        except ValueError as error:
            self.refuse(where, f"reset value: {error}")
        if not 0 <= self.writable <= self._mask:
            self.refuse(where, f"writable bits {self.writable:#x} do not fit in {self.size} bytes")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Register[Value]: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> Value: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Any:
        if device is None:
            return self
        state = device.core.state
        if self.cell is None:
            value = self.load(state.registers[self.bar.index])
        else:
            cells, at = self.cell
            value = state.cells[cells][at]
        return value if self.kind is None else self.typed(value)

    def __set__(self, device: PciDevice, value: int) -> None:
        if self._constant:
            raise AttributeError(f"{self} is constant: it keeps its reset value")
        state = device.core.state
        if self.cell is None:
            self.store(state.registers[self.bar.index], value)
        else:
            cells, at = self.cell
            state.cells[cells][at] = value & self._mask

    def typed(self, value: int) -> Any:
        """``value`` as the register's ``kind``. A ValueError if the enum has no such value.

        The enum module caches every combination of flags that it meets, and a guest could try all of them. So the
        cache is emptied when it has more than MOST_VALUES entries.
        """
        kind = self.kind
        if kind is None:
            return value
        known = kind._value2member_map_
        if len(known) > MOST_VALUES:
            named = {int(member) for member in kind.__members__.values()}
            for combination in known.keys() - named:
                del known[combination]
        return kind(value)

    def meaning(self, value: int) -> str:
        """The name of ``value``, or its flags and fields. Empty without a kind, ``?`` for an unknown value."""
        if self.kind is None:
            return ""
        if issubclass(self.kind, IntFlag):
            return self._parts.text(value)
        try:
            return str(self.typed(value).name)
        except ValueError:
            return "?"

    @functools.cached_property
    def _parts(self) -> Parts:
        assert self.kind is not None
        return Parts(self.kind)

    def load(self, file: memoryview) -> int:
        """Read the value from ``file``, the register file of its BAR."""
        if self._struct is not None:
            value: int = self._struct.unpack_from(file, self.offset)[0]
            return value
        return int.from_bytes(file[self.offset : self.offset + self.size], "little")

    def store(self, file: memoryview, value: int) -> None:
        """Write ``value``, cut to the register's size, to ``file``, the register file of its BAR."""
        value &= self._mask
        if self._struct is not None:
            self._struct.pack_into(file, self.offset, value)
        else:
            file[self.offset : self.offset + self.size] = value.to_bytes(self.size, "little")

    def write(self, hook: WriteHook) -> WriteHook:
        """Run the decorated method after a guest's write has been stored.

        ``hook(self, value)`` gets the value that the guest wrote. If the guest wrote only some of the bytes, the others
        are those stored (``rw``) or zero (``wo``, ``w1c``, ``w1s``).
        """
        return mark(hook, "write", self)

    def read(self, hook: ReadHook) -> ReadHook:
        """Run the decorated method for a guest's read: the guest gets what ``hook(self)`` returns, an int."""
        return mark(hook, "read", self)
