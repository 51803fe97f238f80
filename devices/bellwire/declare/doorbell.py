"""Doorbells, and stretches of a BAR that are handed over whole.

An author says what the device needs to know (that it rang, or with which value too); server and client choose
how the ring travels: an ioeventfd, an ioregionfd, or a REGION_WRITE message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from bellwire.declare.declared import Declared
from bellwire.declare.hooks import mark

if TYPE_CHECKING:
    from bellwire.declare.bar import Bar
    from bellwire.device import PciDevice

RingHook = TypeVar("RingHook", bound=Callable[..., None])
RegionRead = TypeVar("RegionRead", bound=Callable[[Any, int, int], int])
RegionWrite = TypeVar("RegionWrite", bound=Callable[[Any, int, int, int], None])
RegionRing = TypeVar("RegionRing", bound=Callable[[Any, int], None])

SIZES = (1, 2, 4, 8)


class Rings:
    """A doorbell on one device: how often it was rung. It lives in the device's state."""

    __slots__ = ("_counts", "_slot")

    def __init__(self, counts: memoryview, slot: int) -> None:
        self._counts = counts  # of u64
        self._slot = slot

    @property
    def rung(self) -> int:
        """Rings since the last reset, exact however many one wake-up stood for."""
        count: int = self._counts[self._slot]
        return count

    def clear(self) -> None:
        """Count from zero again."""
        self._counts[self._slot] = 0

    def add(self, count: int) -> None:
        """Count rings; wraps at 2**64 as the eventfd's own counter would."""
        self._counts[self._slot] = (self._counts[self._slot] + count) & 0xFFFF_FFFF_FFFF_FFFF


class Doorbell(Declared):
    """A write-only register that rings. Made by :meth:`bellwire.Bar.doorbell`.

    * plain: any write of any value at ``offset`` rings. Rings coalesce: the hook runs once per wake-up, and
      ``self.bell.rung`` says how many there were. An ioeventfd where the client can.
    * ``match=N``: only a write of exactly ``size`` bytes with the value N rings. Several may share an
      offset, with a register below them for all other values.
    * ``value=True``: the hook gets every written value, in order. An ioregionfd where the client can.

    A read gives the BAR's ``fill``.
    """

    def __init__(self, bar: Bar, offset: int, *, size: int, match: int | None, value: bool) -> None:
        self.bar = bar
        self.offset = offset
        self.size = size
        self.match = match
        self.value = value

    def check(self, where: str) -> None:
        """Refuse what no client could register."""
        if self.size not in SIZES:
            self.refuse(where, f"a doorbell has 1, 2, 4 or 8 bytes, not {self.size}")
        if self.offset % self.size:
            self.refuse(where, f"offset {self.offset:#x} is misaligned for {self.size} bytes")
        if self.match is not None and self.value:
            self.refuse(where, "match and value exclude each other: a matched value is already known")
        if self.match is not None and not 0 <= self.match < 1 << 8 * self.size:
            self.refuse(where, f"match {self.match:#x} does not fit in {self.size} bytes")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Doorbell: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> Rings: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Doorbell | Rings:
        if device is None:
            return self
        return device.core.state.rings[self]

    def ring(self, hook: RingHook) -> RingHook:
        """Run the decorated method when it rings: ``hook(self)``, or ``hook(self, value)`` with ``value=True``."""
        return mark(hook, "ring", self)


class IoRegion(Declared):
    """A stretch of a BAR whose reads and writes all come to two hooks. Made by :meth:`bellwire.Bar.ioregion`.

    It travels by ioregionfd where the client can. Unless ``posted``, the guest waits for each write to be
    handled, as it waits for a read. Without a hook, reads give zero and writes are dropped.

    With ``bell=4`` the stretch is a row of doorbells of 4 bytes each. A device whose guests keep the values in
    memory of their own may then call :meth:`bellwire.PciDevice.ring_by_event` in ``setup``: each doorbell travels
    by an ioeventfd where the client can, its value is lost, and the ring hook runs in place of the write hook.
    """

    def __init__(self, bar: Bar, offset: int, size: int, *, posted: bool, bell: int = 0) -> None:
        self.bar = bar
        self.offset = offset
        self.size = size
        self.posted = posted
        self.bell = bell

    def check(self, where: str) -> None:
        """Refuse an empty stretch, and a row of doorbells that no client could register."""
        if self.size <= 0:
            self.refuse(where, f"size is at least 1, not {self.size}")
        if self.bell and self.bell not in SIZES:
            self.refuse(where, f"a doorbell has 1, 2, 4 or 8 bytes, not {self.bell}")
        if self.bell and (self.size % self.bell or self.offset % self.bell):
            self.refuse(where, f"offset and size must be multiples of bell={self.bell}")

    def read(self, hook: RegionRead) -> RegionRead:
        """``hook(self, offset, size) -> int``: offset within the stretch, size 1 to 8 bytes."""
        return mark(hook, "read", self)

    def write(self, hook: RegionWrite) -> RegionWrite:
        """``hook(self, offset, size, value)``: offset within the stretch, size 1 to 8 bytes."""
        return mark(hook, "write", self)

    def ring(self, hook: RegionRing) -> RegionRing:
        """``hook(self, offset)``: the doorbell at ``offset`` of the row was rung, nobody knows with which value."""
        return mark(hook, "ring", self)
