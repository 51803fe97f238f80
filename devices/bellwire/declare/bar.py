"""A base address register. Everything that lies behind it is declared by its methods."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Any, TypeVar, overload

from bellwire.declare.block import BlockArray, Member, Row
from bellwire.declare.declared import Declared, hexadecimal, is_power_of_two
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.register import Register

if TYPE_CHECKING:
    from bellwire.device import PciDevice

Typed = TypeVar("Typed", bound=IntFlag | IntEnum)
Made = TypeVar("Made", bound="Register[Any] | Doorbell | IoRegion | Area | BlockArray[Any]")

BARS = 6
SMALLEST_MEMORY = 16
SMALLEST_IO = 4
LARGEST_MEMORY = 64 << 30
LARGEST_IO = 256
PAGE = 4096


class Area(Declared):
    """A part of a BAR that the guest maps and accesses directly: no hook runs. Made by :meth:`Bar.area`.

    ``offset`` and ``size`` are in bytes, and multiples of 4096. On an instance it is a writable memoryview of the
    memory that device and guest share.
    """

    def __init__(self, bar: Bar, offset: int, size: int) -> None:
        self.bar = bar
        self.offset = offset
        self.size = size

    def check(self, where: str) -> None:
        """Refuse an area that is not made of whole pages: KVM could not map it."""
        if self.size <= 0 or self.size % PAGE or self.offset % PAGE:
            self.refuse(where, f"offset and size must be multiples of {PAGE}, since a guest maps whole pages")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Area: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> memoryview: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Area | memoryview:
        if device is None:
            return self
        return device.core.state.areas[self]


class Bar(Declared):
    """One of the six base address registers (PCI 3.0 §6.2.5.1). Its methods declare what lies behind it.

    ``size`` is in bytes, a power of two, at most 64 GiB; only what is written takes memory. ``io`` makes it I/O
    ports. ``bits`` is 32 or 64; a 64-bit BAR takes the next index too. ``prefetchable`` is for memory whose reads
    have no side effects. ``fill`` is the byte that a guest reads where nothing is declared: 0x00, or 0xFF, which a
    real bus gives where no device answers.
    """

    def __init__(
        self,
        index: int,
        *,
        size: int,
        io: bool = False,
        bits: int = 32,
        prefetchable: bool = False,
        fill: int = 0x00,
    ) -> None:
        self.index = index
        self.size = size
        self.io = io
        self.bits = bits
        self.prefetchable = prefetchable
        self.fill = fill
        self.made: list[Register[Any] | Doorbell | IoRegion | Area | BlockArray[Any]] = []
        """What its methods have declared."""

    def check(self, where: str) -> None:
        """Refuse an index, a size or a type that a base address register cannot express."""
        if not 0 <= self.index < BARS:
            self.refuse(where, f"a BAR's index is 0 to {BARS - 1}, not {self.index}")
        least = SMALLEST_IO if self.io else SMALLEST_MEMORY
        if not is_power_of_two(self.size) or self.size < least:
            self.refuse(
                where,
                f"a BAR's size is a power of two of at least {least} bytes, not {hexadecimal(self.size)}",
            )
        if self.io and self.size > LARGEST_IO:
            self.refuse(where, f"an I/O BAR has at most {LARGEST_IO} ports (PCI 3.0 §6.2.5.1)")
        if not 0 <= self.fill <= 0xFF:
            self.refuse(where, f"fill is a byte, not {self.fill:#x}")
        if self.bits not in (32, 64):
            self.refuse(where, f"bits is 32 or 64, not {self.bits}")
        if self.io and (self.bits == 64 or self.prefetchable):
            self.refuse(where, "an I/O BAR is 32 bits wide and never prefetchable")
        if self.bits == 64 and self.index == BARS - 1:
            self.refuse(where, "a 64-bit BAR takes two indices, so the last one cannot start it")
        if self.size > LARGEST_MEMORY:
            self.refuse(where, f"a BAR has at most 64 GiB, not {hexadecimal(self.size)}")
        if self.bits == 32 and self.size > 1 << 31:
            self.refuse(where, "a 32-bit BAR holds at most 2 GiB: say bits=64")

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
    ) -> Register[Any]:
        """A register of ``size`` bytes (1 to 8) at ``offset``.

        ``kind`` is an IntFlag or IntEnum that the device sees in place of a plain int. ``access`` is one of the
        words of :class:`~bellwire.declare.access.Access`. ``reset`` is the value after reset. ``writable`` is a mask
        of the bits that a guest can change; by default all of them.
        """
        return self._made(Register(self, offset, kind, size=size, access=access, reset=reset, writable=writable))

    def doorbell(
        self,
        offset: int,
        *,
        size: int = 4,
        match: int | None = None,
        value: bool = False,
        values: range | None = None,
        latest: bool = False,
    ) -> Doorbell:
        """A register that a guest writes to start work: see :class:`~bellwire.declare.doorbell.Doorbell`."""
        return self._made(Doorbell(self, offset, size=size, match=match, value=value, values=values, latest=latest))

    def ioregion(
        self, offset: int, size: int, *, posted: bool = False, bell: int = 0, latest: bool = False
    ) -> IoRegion:
        """A range whose reads and writes all run two hooks: see :class:`~bellwire.declare.doorbell.IoRegion`."""
        return self._made(IoRegion(self, offset, size, posted=posted, bell=bell, latest=latest))

    @overload
    def block(self, offset: int, kind: type[Row], /, *, count: int, stride: int) -> BlockArray[Row]: ...
    @overload
    def block(self, offset: int, /, *, count: int, stride: int, **members: Member) -> BlockArray[Any]: ...
    def block(
        self, offset: int, kind: type[Any] | None = None, /, *, count: int, stride: int, **members: Member
    ) -> BlockArray[Any]:
        """``count`` rows of registers and doorbells, ``stride`` bytes apart, from ``offset`` on.

        Keywords declare the members of a row, as ``base=reg(0x00, 8), tail=doorbell(0x10)``. A subclass of
        :class:`~bellwire.declare.block.Block` declares them so that type checkers know their types.
        """
        return self._made(BlockArray(self, offset, kind, count, stride, members))

    def area(self, offset: int, size: int) -> Area:
        """A range of ``size`` bytes at ``offset`` that the guest maps: see :class:`Area`."""
        return self._made(Area(self, offset, size))

    def _made(self, item: Made) -> Made:
        self.made.append(item)
        return item
