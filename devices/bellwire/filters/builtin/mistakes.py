"""``mistakes``: what a driver does wrong, as far as its device can see it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import Any

from bellwire.declare.access import Access
from bellwire.declare.doorbell import Doorbell
from bellwire.declare.register import Register
from bellwire.errors import BellwireError, GuestError
from bellwire.filters import Argument, Client, Duration, Filter, Interrupt, Read, Reset, Ring, Write
from bellwire.filters.events import Event
from bellwire.filters.observing.record import Record
from bellwire.filters.observing.recorder import Recorder
from bellwire.model.host import Timer
from vfio_user import IrqIndex, RegionIndex

LEAD = 8
"""The events before a mistake that are told with it."""
MOST_KINDS = 256
"""Mistakes of different kinds that are told; the others are counted together."""
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")
_READ_ONLY = frozenset({Access.RO, Access.RC, Access.CONSTANT})


class DriverMistake(BellwireError):
    """A driver's mistake, with ``strict``."""


class Mistakes(Filter):
    """Tells of a driver's mistakes once for each kind, with the events that led there, and counts them always.

    It sees these: an access to where nothing is declared, a write to a read-only register, an access of another width
    than the register's; a ring before a register is set that the doorbell needs; whatever the model refuses, as DMA
    outside guest memory or with bus mastering off; a register that is read again and again in a tight loop; an INTx
    interrupt that stays unacknowledged, and a vector that stays masked while it is pending; a reset while the device
    works. With ``strict`` each of the mistakes in an access is raised, so that a test fails.
    """

    patience = Duration(1.0, help="how long an interrupt may stay unacknowledged, or pending behind a mask")
    spin = Argument(1000, least=2, help="reads of one register in a row that are a tight loop")
    strict = Argument(False, help="raise the mistake, where the guest made it")

    def start(self) -> None:
        """Nothing has happened yet."""
        self.counts: dict[str, int] = {}
        """How often each mistake was made."""
        self._kinds: dict[str, str] = {}
        self._recorder = Recorder(self.device.layout)
        self._recent: deque[Record] = deque(maxlen=LEAD)
        self._spun: tuple[str, int, float] = ("", 0, 0.0)
        self._unacknowledged: dict[tuple[IrqIndex, int], Timer] = {}

    # -- accesses

    def after_read(self, read: Read) -> None:
        """A guest has read."""
        self._spins(read)
        self._look(read, self._recorder.access(read, "read", ""), self._in_read(read))

    def after_write(self, write: Write) -> None:
        """A guest has written."""
        self._spun = ("", 0, 0.0)
        self._look(write, self._recorder.access(write, "write", ""), self._in_write(write))

    def before_ring(self, ring: Ring) -> None:
        """A guest rings."""
        self._spun = ("", 0, 0.0)
        self._recent.append(self._recorder.ring(ring))
        bell = ring.bell
        if isinstance(bell, Doorbell):
            for register in bell.needed:
                if not self._value(register):
                    self._tell(f"{ring.name} is rung while {register.name}, which it needs, is 0")

    def after_ring(self, ring: Ring) -> None:
        """The ring's hook has run."""
        self._refused(ring, f"ring of {ring.name}")

    def _in_read(self, read: Read) -> Iterator[str]:
        yield from self._places(read, "read")
        for _, item in read.place.items:
            if isinstance(item, Register) and item.access is Access.WO:
                yield f"{item.name} is read, and is write-only"

    def _in_write(self, write: Write) -> Iterator[str]:
        yield from self._places(write, "write")
        for _, item in write.place.items:
            if isinstance(item, Register) and item.access in _READ_ONLY:
                yield f"{item.name} is written, and is read-only ({item.access.value})"

    def _places(self, event: Read | Write, verb: str) -> Iterator[str]:
        place = event.place
        registers = [item for _, item in place.items if isinstance(item, Register)]
        if not place.items and place.region != RegionIndex.ROM:
            yield f"a {verb} of {place.count} bytes at {place.label}, where nothing is"
        elif registers and place.register is None:
            sizes = ", ".join(f"{each.name} has {each.size}" for each in registers[:4])
            yield f"a {verb} of {place.count} bytes at {place.label}: {sizes}"

    def _spins(self, read: Read) -> None:
        """Count reads of one place in a row."""
        name, count, since = self._spun
        if name != read.place.name:
            self._spun = (read.place.name, 1, self.now)
            return
        self._spun = (name, count + 1, since)
        if count + 1 == self.spin:
            seconds = self.now - since
            self._tell(f"{name} is read in a tight loop", f"{self.spin} times in {1e3 * seconds:.1f} ms")

    # -- interrupts and resets

    def after_interrupt(self, interrupt: Interrupt) -> None:
        """The device has interrupted."""
        self._recent.append(self._recorder.interrupt(interrupt))
        key = interrupt.kind, interrupt.vector
        if interrupt.level or interrupt.outcome == "pending":
            if key not in self._unacknowledged:
                self._unacknowledged[key] = self.after(self.patience, self._overdue, *key)
        elif key in self._unacknowledged:
            self._unacknowledged.pop(key).cancel()
        self._refused(interrupt, "interrupt")

    def _overdue(self, kind: IrqIndex, vector: int) -> None:
        del self._unacknowledged[kind, vector]
        if kind is IrqIndex.INTX:
            self._tell(f"INTx has been high for {self.patience:g} s: the driver does not acknowledge it", raised=False)
        elif self.device.core.signals.is_pending(vector):
            self._tell(f"MSI-X {vector} has been pending for {self.patience:g} s: it is masked", raised=False)

    def before_reset(self, reset: Reset) -> None:
        """The device is about to be reset."""
        self._recent.append(self._recorder.reset(reset))
        self._expect_nothing()
        working = len(self.device.core.timers)
        if working:
            self._tell(f"a reset in the middle of work: {working} of the device's timers were running", raised=False)

    def client(self, client: Client) -> None:
        """A client has come or gone: who has gone acknowledges nothing any more."""
        self._expect_nothing()

    def _expect_nothing(self) -> None:
        for timer in self._unacknowledged.values():
            timer.cancel()
        self._unacknowledged.clear()

    # -- telling

    def report(self) -> dict[str, Any]:
        """The mistakes, and how often each was made."""
        return dict(self.counts)

    def _look(self, event: Read | Write, record: Record, found: Iterator[str]) -> None:
        self._recent.append(record)
        for text in found:
            self._tell(text)
        self._refused(event, record.kind)

    def _refused(self, event: Event, what: str) -> None:
        """Tell of what the model has refused. Numbers differ from one time to the next: they make no new mistake."""
        if isinstance(event.error, GuestError):
            self._tell(f"{what}: {event.error}", raised=False)

    def _value(self, register: Register[Any]) -> int:
        return register.load(self.device.core.state.registers[register.bar.index])

    def _tell(self, text: str, detail: str = "", *, raised: bool = True) -> None:
        kind = _NUMBERS.sub("#", text)
        first = self._kinds.get(kind)
        if first is None:
            if len(self._kinds) >= MOST_KINDS:
                kind = first = "other mistakes"
            else:
                first = self._kinds[kind] = text
        said = first not in self.counts
        self.counts[first] = self.counts.get(first, 0) + 1
        if said:
            lead = "".join(f"\n  {record.line()}" for record in self._recent)
            more = f": {detail}" if detail else ""
            self.device.log.warning("the driver's mistake: %s%s; it came after%s", text, more, lead)
        if raised and self.strict:
            raise DriverMistake(text)
