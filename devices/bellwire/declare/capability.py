"""Extended capabilities: structures in config space from 100h on, with registers of their own (PCIe 6.0 §7.6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from bellwire.declare.declared import Declared
from bellwire.declare.hooks import Tie
from bellwire.declare.register import Register
from bellwire.declare.saved import SavedBytes

if TYPE_CHECKING:
    from bellwire.declare.layout import Layout
    from bellwire.model.capabilities import Template
    from bellwire.model.core import Core

Typed = TypeVar("Typed", bound=IntFlag | IntEnum)

START, END = 0x100, 0x1000
"""Where extended config space begins and ends."""
HEADER = 4
"""Bytes of the header: capability ID, version, and the offset of the next capability (§7.6.3)."""
_ID, _VERSION, _NEXT = 0, 16, 20


class ExtendedCapability(Declared):
    """A structure of ``size`` bytes, header included. Its registers' offsets count from its start.

    A subclass says which ``number`` (capability ID) and ``version`` it has, and whether a function may have
    ``several`` of it. It declares its registers by :meth:`own`, and returns by :meth:`part` what an instance of the
    device has in its place.
    """

    number: ClassVar[int]
    version: ClassVar[int] = 1
    several: ClassVar[bool] = False
    title: ClassVar[str]
    """The name of the capability in the specification."""

    fill = 0

    def __init__(self, size: int) -> None:
        self.size = size
        self.registers: list[Register[Any]] = []
        """The registers that the specification defines, as far as this capability has them."""
        self.saved: list[SavedBytes] = []
        """State beside the registers that a snapshot must have too."""
        self.handled: list[Tie] = []
        """Events of registers that the part handles itself, so that no method can be tied to them."""

    @property
    def index(self) -> ExtendedCapability:
        """The key of its bytes in the device's state. A BAR's key is the BAR's index."""
        return self

    def own(
        self,
        name: str,
        offset: int,
        kind: type[IntFlag | IntEnum] | None = None,
        *,
        size: int = 4,
        access: str = "ro",
        reset: int = 0,
        writable: int | None = None,
        sticky: bool = False,
    ) -> Register[Any]:
        """Declare a register that the specification defines. A ``sticky`` one keeps its value over a reset (§7.4)."""
        register: Register[Any] = Register(
            self, offset, kind, size=size, access=access, reset=reset, writable=writable, sticky=sticky
        )
        register.name, register.place = name, self.place
        self.registers.append(register)
        return register

    def own_bytes(self, name: str, size: int) -> SavedBytes:
        """Declare ``size`` bytes of state that are no register."""
        saved = SavedBytes(size)
        saved.name = name
        self.saved.append(saved)
        return saved

    def __set_name__(self, owner: type[Any], name: str) -> None:
        if self.name == "?":
            for item in (*self.registers, *self.saved):
                item.name, item.owner = f"{name}.{item.name}", owner.__qualname__
        super().__set_name__(owner, name)

    def check(self, where: str) -> None:
        """Refuse what the capability cannot express. A subclass adds its own checks."""

    def check_among(self, where: str, layout: Layout) -> None:
        """Refuse what does not go with the device's other declarations. A subclass adds its own checks."""
        for event, register in self.handled:
            if (event, register) in layout.hooks:
                method = layout.hooks[event, register]
                self.refuse(where, f"{method} is tied to {register.name}, which the SDK itself handles")

    def shape(self, space: Template) -> None:
        """Change what the header and other capabilities have after a reset, if this one says so."""

    def part(self, core: Core) -> Any:
        """What an instance of the device has in the place of the declaration."""
        raise NotImplementedError

    def follow(self, part: Any) -> None:
        """Called when a reset or a restore may have changed registers under ``part``."""


class VendorRegisters(ExtendedCapability):
    """A capability whose registers the device's author declares."""

    first: ClassVar[int]
    """Where the author's registers may begin."""

    @overload
    def reg(
        self,
        offset: int,
        kind: None = None,
        *,
        size: int = 4,
        access: str = "rw",
        reset: int = 0,
        writable: int | None = None,
        sticky: bool = False,
    ) -> Register[int]: ...
    @overload
    def reg(
        self,
        offset: int,
        kind: type[Typed],
        *,
        size: int = 4,
        access: str = "rw",
        reset: int = 0,
        writable: int | None = None,
        sticky: bool = False,
    ) -> Register[Typed]: ...
    def reg(
        self,
        offset: int,
        kind: type[Any] | None = None,
        *,
        size: int = 4,
        access: str = "rw",
        reset: int = 0,
        writable: int | None = None,
        sticky: bool = False,
    ) -> Register[Any]:
        """A register of ``size`` bytes (1 to 8) at ``offset`` from the start of the capability.

        The arguments are those of :meth:`bellwire.Bar.reg`. A ``sticky`` register keeps its value over a reset.
        """
        return Register(self, offset, kind, size=size, access=access, reset=reset, writable=writable, sticky=sticky)

    def check(self, where: str) -> None:
        """Refuse a size that is no number of dwords, or that the length field cannot hold."""
        if self.size % 4 or not self.first <= self.size < END:
            self.refuse(
                where, f"size is a multiple of 4 from {-(-self.first // 4) * 4} to {END - 4} bytes, not {self.size}"
            )

    def part(self, core: Core) -> memoryview:
        """The bytes of the capability, header included."""
        return core.state.registers[self]


@dataclass(frozen=True, slots=True)
class CapabilityLayout:
    """An extended capability of a device class: where it lies in config space, and its registers by offset."""

    capability: ExtendedCapability
    at: int
    header: int
    """The header as config space has it: ID, version and next."""
    placed: tuple[Register[Any], ...]

    @property
    def end(self) -> int:
        """The offset in config space behind the capability."""
        return self.at + self.capability.size


def in_capability(item: Declared) -> bool:
    """Whether ``item`` is a register of an extended capability."""
    return isinstance(item, Register) and isinstance(item.bar, ExtendedCapability)


def arrange(where: str, declared: Iterable[Declared]) -> Iterator[CapabilityLayout]:
    """Lay the capabilities among ``declared`` out in the order of their declarations, the first at 100h; chain them.

    A DeclarationError if they do not fit, if a function has two of a kind that it may have once, or if a register is in
    no capability of the class. The caller checks that registers lie inside their capability and do not overlap.
    """
    declared = list(declared)
    found = [item for item in declared if isinstance(item, ExtendedCapability)]
    theirs = [item for item in declared if isinstance(item, Register) and isinstance(item.bar, ExtendedCapability)]
    for register in theirs:
        if register.bar not in found:
            register.refuse(where, f"its capability is not declared in {where}")
        if 0 <= register.offset < HEADER:
            register.refuse(where, f"offset {register.offset:#x} is in the header of {register.bar.name}")
    starts = list(_starts(where, found))
    for number, (capability, start) in enumerate(zip(found, starts, strict=True), 1):
        following = starts[number] if number < len(starts) else 0
        header = capability.number << _ID | capability.version << _VERSION | following << _NEXT
        placed = [*capability.registers, *(register for register in theirs if register.bar is capability)]
        placed.sort(key=lambda register: register.offset)
        yield CapabilityLayout(capability, start, header, tuple(placed))


def _starts(where: str, found: Iterable[ExtendedCapability]) -> Iterator[int]:
    """The offset of each capability: a dword, behind the one before."""
    kinds: dict[int, ExtendedCapability] = {}
    at = START
    for capability in found:
        other = kinds.setdefault(capability.number, capability)
        if other is not capability and not capability.several:
            capability.refuse(where, f"a function has one {capability.title} capability, and {other.name} is one")
        yield at
        at += -(-capability.size // 4) * 4
        if at > END:
            room = END - START
            capability.refuse(
                where, f"it ends at {at:#x}: there are {room} bytes for extended capabilities, to {END:#x}"
            )
