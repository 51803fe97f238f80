"""The filtered way of the guest's accesses and rings, from the client to the model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.filters.arrivals import Dropped, Passage
from bellwire.filters.chain import Chain
from bellwire.filters.events import Read, Ring, Write
from bellwire.filters.place import Place, Places, rung, within_ioregion
from vfio_user import Late, Reader, RegionIndex, Writer

if TYPE_CHECKING:
    from bellwire.filters.stack import Stack
    from bellwire.model.core import Core

_CONFIG = int(RegionIndex.CONFIG)


class Accesses:
    """Takes the place of the core's methods for accesses and rings, in those paths in which there are filters."""

    def __init__(self, stack: Stack, core: Core) -> None:
        self._stack = stack
        self._places = Places(core.layout)
        self._reader, self._writer = core.reader, core.writer
        self._ioregion_read, self._ioregion_write = core.ioregion_read, core.ioregion_write
        self._ring, self._ring_value, self._ring_in_row = core.ring, core.ring_value, core.ring_in_row
        self.mechanism = "message"
        """How the ring or the access that is being handled has come."""

    def methods(self, chain: Callable[[str], Chain], *, whole: bool) -> dict[str, Callable[..., Any]]:
        """What takes the place of the core's methods. ``whole``: the paths without filters too, to keep the order."""
        self._reads, self._writes, self._rings = chain("read"), chain("write"), chain("ring")
        self._config_reads, self._config_writes = chain("config_read"), chain("config_write")
        self._whole = whole
        found: dict[str, Callable[..., Any]] = {}
        if whole or self._reads or self._config_reads:
            found |= {"reader": self.reader, "ioregion_read": self.ioregion_read}
        if whole or self._writes or self._config_writes:
            found["writer"] = self.writer
        if whole or self._rings or self._writes:
            found["ioregion_write"] = self.ioregion_write
        if whole or self._rings:
            found |= {"ring": self.ring, "ring_value": self.ring_value, "ring_in_row": self.ring_in_row}
        return found

    def by(self, mechanism: str, guard: Callable[..., Any]) -> Callable[..., Any]:
        """``guard`` for device code, which rings or accesses by ``mechanism`` reach."""

        def guarded(function: Callable[..., Any], *arguments: Any) -> Any:
            self.mechanism = mechanism
            try:
                return guard(function, *arguments)
            finally:
                self.mechanism = "message"

        return guarded

    # -- the core's methods

    def reader(self, index: int, offset: int, count: int) -> Reader:
        """As :meth:`Core.reader`."""
        inner = self._reader(index, offset, count)
        chain = self._config_reads if index == _CONFIG else self._reads
        place = self._places.at(index, offset, count)
        if within_ioregion(place) or not (chain or self._whole):
            return inner
        return Reader(functools.partial(self._read, place, chain, inner.read))

    def writer(self, index: int, offset: int, count: int) -> Writer:
        """As :meth:`Core.writer`."""
        inner = self._writer(index, offset, count)
        chain = self._config_writes if index == _CONFIG else self._writes
        place = self._places.at(index, offset, count)
        if within_ioregion(place) or not (chain or self._whole):
            return inner
        bells = any(isinstance(item, Doorbell) for _, item in place.items)
        return functools.partial(self._write, place, chain, inner, bells)

    def ioregion_read(self, region: IoRegion, offset: int, size: int) -> int:
        """As :meth:`Core.ioregion_read`."""
        place = self._places.of(region, offset, size)
        event = Read(place, self.mechanism)

        def act() -> None:
            event.value = self._ioregion_read(region, offset, size)

        if self.mechanism == "message":
            self._await(event, act, self._reads)
        else:  # the guest waits in the kernel for the response to this very command
            self._stack.arrivals.finish()
            self._reads.run(event, self._inside(act))
        return event.value

    def ioregion_write(self, region: IoRegion, offset: int, size: int, value: int) -> None:
        """As :meth:`Core.ioregion_write`."""
        if region.bell:
            ring = Ring(region, offset, value, 1, self.mechanism)

            def rung() -> None:
                self._ioregion_write(region, offset, size, value if ring.value is None else ring.value)

            self._pass(self._rings, ring, rung)
            return
        write = Write(self._places.of(region, offset, size), value, self.mechanism)
        self._pass(self._writes, write, lambda: self._ioregion_write(region, offset, size, write.value))

    def ring(self, bell: Doorbell, count: int) -> None:
        """As :meth:`Core.ring`."""
        ring = Ring(bell, 0, None, count, self.mechanism)
        self._pass(self._rings, ring, lambda: self._ring(bell, ring.count))

    def ring_value(self, bell: Doorbell, value: int, count: int = 1) -> None:
        """As :meth:`Core.ring_value`."""
        ring = Ring(bell, 0, value & (1 << 8 * bell.size) - 1, count, self.mechanism)
        self._pass(self._rings, ring, lambda: self._ring_value(bell, ring.value or 0, ring.count))

    def ring_in_row(self, bell: tuple[IoRegion, int], count: int) -> None:
        """As :meth:`Core.ring_in_row`."""
        ring = Ring(bell[0], bell[1], None, count, self.mechanism)
        self._pass(self._rings, ring, lambda: self._ring_in_row(bell, ring.count))

    # -- through the filters

    def _read(self, place: Place, chain: Chain, inner: Callable[[], bytes | memoryview]) -> bytes:
        event = Read(place)

        def act() -> None:
            event.value = int.from_bytes(inner(), "little")

        self._await(event, act, chain)
        return event.value.to_bytes(place.count, "little")

    def _write(self, place: Place, chain: Chain, inner: Writer, bells: bool, data: memoryview) -> None:
        value = int.from_bytes(data, "little")
        if bells and rung(place, value):
            inner(data)  # it becomes a ring
            return
        write = Write(place, value)
        self._pass(chain, write, lambda: inner(memoryview(write.value.to_bytes(place.count, "little"))), place.count)

    def _await(self, event: Read, act: Callable[[], None], chain: Chain) -> None:
        """Take a read through its filters. Raises Late if that takes time."""
        if not self._whole:
            chain.run(event, act)
            return
        late = Late()

        def ended(error: Exception | None) -> None:
            if isinstance(error, Dropped):
                late.answer(b"\xff" * event.place.count)
            elif error is not None:
                late.fail(error)
            else:
                late.answer(event.value.to_bytes(event.place.count, "little"))

        if not self._stack.arrivals.admit(Passage(chain.steps(event, self._inside(act)), event.place.count, ended)):
            raise late

    def _pass(self, chain: Chain, event: Write | Ring, act: Callable[[], None], size: int = 8) -> None:
        """Take a write or a ring through its filters. If that takes time, the guest does not wait for it."""
        if not self._whole:
            chain.run(event, act)
            return
        self._stack.arrivals.admit(Passage(chain.steps(event, self._inside(act)), size, self._stack.ended))

    def _inside(self, act: Callable[[], None]) -> Callable[[], None]:
        """``act``, with the mark that what it calls happens within an event of the guest."""

        def inside() -> None:
            self._stack.depth += 1
            try:
                act()
            finally:
                self._stack.depth -= 1

        return inside
