"""Doorbells, and ranges of a BAR whose accesses all run two hooks.

An author says what the device needs to know: only that the doorbell rang, or the value too. Server and client choose
the mechanism that carries the ring: an ioeventfd, an ioregionfd, or a REGION_WRITE message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from bellwire.declare.declared import Declared
from bellwire.declare.hooks import mark

if TYPE_CHECKING:
    from bellwire.declare.bar import Bar
    from bellwire.declare.register import Register
    from bellwire.device import PciDevice

RingHook = TypeVar("RingHook", bound=Callable[..., None])
RegionRead = TypeVar("RegionRead", bound=Callable[[Any, int, int], int])
RegionWrite = TypeVar("RegionWrite", bound=Callable[[Any, int, int, int], None])
RegionRing = TypeVar("RegionRing", bound=Callable[[Any, int], None])

SIZES = (1, 2, 4, 8)
MOST_VALUES = 64  # of a doorbell with values: each takes an eventfd


class Rings:
    """What a doorbell is on an instance: how often it was rung. The count lies in the device's state."""

    __slots__ = ("_counts", "_slot")

    def __init__(self, counts: memoryview, slot: int) -> None:
        self._counts = counts  # of u64
        self._slot = slot

    @property
    def rung(self) -> int:
        """Rings since the last reset. The count is exact, even if one wake-up stands for many rings."""
        count: int = self._counts[self._slot]
        return count

    def clear(self) -> None:
        """Set the count to zero."""
        self._counts[self._slot] = 0

    def add(self, count: int) -> None:
        """Add ``count`` rings. The sum wraps at 2**64."""
        self._counts[self._slot] = (self._counts[self._slot] + count) & 0xFFFF_FFFF_FFFF_FFFF


class Doorbell(Declared):
    """A write-only register that a guest writes to tell the device of work. Made by :meth:`bellwire.Bar.doorbell`.

    There are five kinds:

    * plain: a write of any value at ``offset`` rings. Rings coalesce: the hook runs once per wake-up, and
      ``self.bell.rung`` tells how often the guest has rung. The client may register an ioeventfd.
    * ``match=N``: only a write of exactly ``size`` bytes with the value N rings. Several of them may share an
      offset, and a register of the same size at that offset takes all other values.
    * ``values=range(N)``: a write of exactly ``size`` bytes with one of at most 64 values rings, and the hook gets the
      value. Rings coalesce for each value. Other values are ordinary writes, as with ``match``. The client may
      register an ioeventfd for each value.
    * ``value=True``: the hook gets every written value, in order. The client may register an ioregionfd.
    * ``latest=True``: the hook gets a value, and needs the last one only, as of the tail of a queue. The client may
      register a shadow ioeventfd: then rings coalesce. Otherwise it is like ``value=True``.

    A read gives the BAR's ``fill``, unless a register lies at the same offset.
    """

    def __init__(
        self,
        bar: Bar,
        offset: int,
        *,
        size: int,
        match: int | None,
        value: bool,
        values: range | None,
        latest: bool,
    ) -> None:
        self.bar = bar
        self.offset = offset
        self.size = size
        self.match = match
        self.value = value or latest
        self.values = values
        self.latest = latest
        self.needed: tuple[Register[Any], ...] = ()
        """Registers that a driver sets before it rings: see :meth:`needs`."""

    def needs(self, *registers: Register[Any]) -> None:
        """Declare, in a line of the class body, which registers a driver must have set before it rings.

        A ring while one of them is 0 reaches the device as ever. The filter ``mistakes`` tells of it.
        """
        self.needed = registers

    @property
    def accepted(self) -> range | None:
        """The values that ring, in a write of exactly ``size`` bytes; None if any value rings."""
        return self.values if self.match is None else range(self.match, self.match + 1)

    @property
    def with_value(self) -> bool:
        """Whether the ring hook gets a value."""
        return self.value or self.values is not None

    def check(self, where: str) -> None:
        """Refuse a doorbell that no client could register with KVM."""
        if self.size not in SIZES:
            self.refuse(where, f"a doorbell has 1, 2, 4 or 8 bytes, not {self.size}")
        if self.offset % self.size:
            self.refuse(where, f"offset {self.offset:#x} is misaligned for {self.size} bytes")
        if self.match is not None and self.value:
            words = "latest" if self.latest else "value"
            self.refuse(where, f"match and {words} exclude each other: a matched value is already known")
        if self.values is not None:
            self.check_values(where, self.values)
        if self.match is not None and not 0 <= self.match < 1 << 8 * self.size:
            self.refuse(where, f"match {self.match:#x} does not fit in {self.size} bytes")

    def check_values(self, where: str, values: range) -> None:
        """Refuse values that cannot be handed out as eventfds."""
        if self.match is not None or self.value:
            self.refuse(where, "values excludes match, value and latest")
        if not isinstance(values, range):
            self.refuse(where, f"values is a range, as range(8), not {values!r}")
        if not 1 <= len(values) <= MOST_VALUES:
            self.refuse(where, f"values has 1 to {MOST_VALUES} values, not {len(values)}: each takes an eventfd")
        if min(values) < 0 or max(values) >= 1 << 8 * self.size:
            self.refuse(where, f"values {values} do not fit in {self.size} bytes")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Doorbell: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> Rings: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Doorbell | Rings:
        if device is None:
            return self
        return device.core.state.rings[self]

    def ring(self, hook: RingHook) -> RingHook:
        """Run the decorated method for a ring: ``hook(self)``, or ``hook(self, value)`` if the doorbell has values."""
        return mark(hook, "ring", self)


class IoRegion(Declared):
    """A range of a BAR whose reads all run one hook, and whose writes another. Made by :meth:`bellwire.Bar.ioregion`.

    Accesses arrive by ioregionfd if the client supports it, and as messages otherwise. The guest waits until a write
    has been handled, as it does for a read; with ``posted`` it does not wait for writes. Without a hook, reads give
    zero and writes are dropped.

    With ``bell=4`` the range is a row of doorbells of 4 bytes each. With ``latest=True`` the write hook needs only the
    last value of each of them. The client may register shadow ioeventfds for them then; their rings coalesce.

    If a driver keeps the values in guest memory as
    well, the device may call :meth:`bellwire.PciDevice.ring_by_event` in ``setup``. Each doorbell is then an ioeventfd
    if the client supports that: the value of a ring is lost, and the ring hook runs in place of the write hook.
    """

    def __init__(self, bar: Bar, offset: int, size: int, *, posted: bool, bell: int, latest: bool) -> None:
        self.bar = bar
        self.offset = offset
        self.size = size
        self.posted = posted
        self.bell = bell
        self.latest = latest

    def check(self, where: str) -> None:
        """Refuse an empty range, and a row of doorbells that no client could register with KVM."""
        if self.size <= 0:
            self.refuse(where, f"size is at least 1, not {self.size}")
        if self.bell and self.bell not in SIZES:
            self.refuse(where, f"a doorbell has 1, 2, 4 or 8 bytes, not {self.bell}")
        if self.bell and (self.size % self.bell or self.offset % self.bell):
            self.refuse(where, f"offset and size must be multiples of bell={self.bell}")
        if self.latest and not (self.bell and self.posted):
            self.refuse(where, "latest=True is for a row of doorbells: say bell= and posted=True as well")

    def read(self, hook: RegionRead) -> RegionRead:
        """``hook(self, offset, size) -> int`` answers a read; ``offset`` is within the range, ``size`` 1 to 8 bytes."""
        return mark(hook, "read", self)

    def write(self, hook: RegionWrite) -> RegionWrite:
        """``hook(self, offset, size, value)`` takes a write; ``offset`` is within the range, ``size`` 1 to 8 bytes."""
        return mark(hook, "write", self)

    def ring(self, hook: RegionRing) -> RegionRing:
        """``hook(self, offset)``: the doorbell at ``offset`` of the row was rung; the value is not known."""
        return mark(hook, "ring", self)
