"""``mistakes``: what a driver does wrong, as far as its device can see it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import Any
from weakref import WeakSet

from bellwire.declare.access import Access
from bellwire.declare.doorbell import Doorbell
from bellwire.declare.register import Register
from bellwire.errors import BellwireError, GuestError
from bellwire.filters import Argument, Client, Duration, Filter, Interrupt, Place, Read, Reset, Ring, Write
from bellwire.filters.events import Event
from bellwire.filters.observing.polling import Polling
from bellwire.filters.observing.record import Record, short
from bellwire.filters.observing.recorder import Recorder
from bellwire.model.host import Timer
from vfio_user import IrqIndex, RegionIndex

LEAD = 8
"""The events before a mistake that are told with it."""
TIGHT = 1.0  # seconds
WIDTHS = frozenset({1, 2, 4, 8})
LONGEST = 200
"""Characters of an error that are told."""
MOST_OF_A_SORT = 32
"""Mistakes of one sort, as writes to different read-only registers, that are told; the others are counted together."""
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")
_READ_ONLY = frozenset({Access.RO, Access.RC, Access.CONSTANT})


class Sort(Enum):
    """What mistakes have in common. The words stand for those that are counted together."""

    NOWHERE = "accesses to where nothing is"
    READ_ONLY = "writes to read-only registers"
    WRITE_ONLY = "reads of write-only registers"
    WIDTH = "accesses of another width than the register's"
    EARLY = "rings before a register is set"
    REFUSED = "things that the device refuses"
    LOOP = "tight loops"
    INTERRUPT = "interrupts that nobody takes"
    RESET = "resets"


class DriverMistake(BellwireError):
    """A driver's mistake, with ``strict``."""


class Mistakes(Filter):
    """Tells of each of a driver's mistakes once, with the events that led there, and counts them always.

    It sees these: an access to where nothing is declared, a write to a read-only register, an access of another width
    than the register's, except for an aligned half of 8 bytes; a ring before a register is set that the doorbell
    needs; whatever the model refuses, as DMA outside guest memory or with bus mastering off; registers that are read
    again and again in a tight loop; an INTx interrupt that stays unacknowledged, and a vector that stays masked while
    it is pending; a reset while the device works. With ``strict``, which is for tests, each of them fails the test: a
    mistake in an access is raised there, and one that no access makes when the guest ends.
    """

    patience = Duration(1.0, help="how long an interrupt may stay unacknowledged, or pending behind a mask")
    spin = Argument(1000, least=2, help="reads in a row, within a second, that are a tight loop")
    strict = Argument(False, help="raise the mistake, so that a test fails")

    def start(self) -> None:
        """Nothing has happened yet."""
        self.counts: dict[str, int] = {}
        """How often each mistake was made."""
        self._told: dict[Sort, dict[str, str]] = {sort: {} for sort in Sort}
        self._late = ""
        self._recorder = Recorder(self.device.layout)
        self._recent: deque[Record] = deque(maxlen=LEAD)
        self._polling = Polling(self.spin, TIGHT)
        self._lengths: dict[str, str] = {}
        self._timers: WeakSet[Timer] = WeakSet()
        self._work: WeakSet[Timer] = WeakSet()
        self._unacknowledged: dict[tuple[IrqIndex, int], Timer] = {}

    def stop(self) -> None:
        """The loop that the guest is in is the last."""
        self._goes_on()

    def conclude(self) -> None:
        """Fail a test, with ``strict``, by a mistake that no access has made."""
        if self.strict and self._late:
            raise DriverMistake(self._late)

    # -- accesses

    def after_read(self, read: Read) -> None:
        """A guest has read."""
        self._polls(read)
        self._look(read, self._recorder.access(read, "read", ""), self._in_read(read))

    def before_write(self, write: Write) -> None:
        """A guest writes: timers that the device sets meanwhile are its work."""
        self._timers = self.device.core.timers.copy()

    def after_write(self, write: Write) -> None:
        """A guest has written."""
        self._goes_on()
        self._works()
        self._look(write, self._recorder.access(write, "write", ""), self._in_write(write))

    def before_ring(self, ring: Ring) -> None:
        """A guest rings."""
        self._goes_on()
        self._timers = self.device.core.timers.copy()
        self._recent.append(self._recorder.ring(ring))
        bell = ring.bell
        if isinstance(bell, Doorbell):
            for register in bell.needed:
                if not self._value(register):
                    self._tell(Sort.EARLY, f"{ring.name} is rung while {register.name}, which it needs, is 0")

    def after_ring(self, ring: Ring) -> None:
        """The ring's hook has run."""
        self._works()
        self._refused(ring, f"ring of {ring.name}")

    def _in_read(self, read: Read) -> Iterator[tuple[Sort, str]]:
        yield from self._places(read, "read")
        for _, item in read.place.items:
            if isinstance(item, Register) and item.access is Access.WO:
                yield Sort.WRITE_ONLY, f"{item.name} is read, and is write-only"

    def _in_write(self, write: Write) -> Iterator[tuple[Sort, str]]:
        yield from self._places(write, "write")
        for _, item in write.place.items:
            if isinstance(item, Register) and item.access in _READ_ONLY:
                yield Sort.READ_ONLY, f"{item.name} is written, and is read-only ({item.access.value})"

    def _places(self, event: Read | Write, verb: str) -> Iterator[tuple[Sort, str]]:
        place = event.place
        registers = [item for _, item in place.items if isinstance(item, Register)]
        if not place.items and place.region != RegionIndex.ROM:
            yield Sort.NOWHERE, f"a {verb} of {place.count} bytes at {place.label}, where nothing is"
        elif registers and not _fits(place):
            sizes = ", ".join(f"{each.name} has {each.size}" for each in registers[:4])
            yield Sort.WIDTH, f"a {verb} of {place.count} bytes at {place.label}: {sizes}"

    # -- loops

    def _polls(self, read: Read) -> None:
        """Notice a tight loop."""
        if read.error is not None:
            self._goes_on()
            return
        polling, place, now = self._polling, short(read.place.name), self.now
        if not polling.goes_on(place, read.value, now):
            self._goes_on()
        if polling.read(place, read.value, now):
            self._tell(Sort.LOOP, f"read in a tight loop: {polling.places}", polling.length)

    def _goes_on(self) -> None:
        """Something else happens than a read that gives what it gave before: a tight loop has ended."""
        polling = self._polling
        if polling.reads and polling.places not in self._lengths and len(self._lengths) < MOST_OF_A_SORT:
            self._lengths[polling.places] = polling.length
            self.device.log.warning("the driver's tight loop has ended: %s: %s", polling.places, polling.length)
        polling.clear()

    # -- interrupts and resets

    def after_interrupt(self, interrupt: Interrupt) -> None:
        """The device has interrupted."""
        self._goes_on()
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
        waited = f"for {self.patience:g} s"
        if kind is IrqIndex.INTX:
            self._tell_late(Sort.INTERRUPT, f"INTx has been high {waited}: the driver does not acknowledge it")
        elif self.device.core.signals.is_pending(vector):
            self._tell_late(Sort.INTERRUPT, f"MSI-X {vector} has been pending {waited}: it is masked")

    def before_reset(self, reset: Reset) -> None:
        """The device is about to be reset."""
        self._goes_on()
        self._recent.append(self._recorder.reset(reset))
        self._expect_nothing()
        core = self.device.core
        timers = sum(timer.waits for timer in self._work)
        if timers or any(pool.busy for pool in core.pools):
            what = f"{timers} of its timers are running" if timers else "jobs of its pool are running"
            self._tell_late(Sort.RESET, "a reset in the middle of what a driver has started", what)

    def client(self, client: Client) -> None:
        """A client has come or gone: who has gone acknowledges nothing any more."""
        self._goes_on()
        self._expect_nothing()
        self._work.clear()

    def _works(self) -> None:
        """The driver has started something, if the device has set timers for it.

        Those that it sets at other times are its own: they may run for ever.
        """
        self._work |= self.device.core.timers - self._timers

    def _expect_nothing(self) -> None:
        for timer in self._unacknowledged.values():
            timer.cancel()
        self._unacknowledged.clear()

    # -- telling

    def report(self) -> dict[str, Any]:
        """The mistakes, and how often each was made; for tight loops also how long the first was."""
        return self.counts | {f"the first tight loop of {places}": length for places, length in self._lengths.items()}

    def _look(self, event: Read | Write, record: Record, found: Iterator[tuple[Sort, str]]) -> None:
        self._recent.append(record)
        for sort, text in found:
            self._tell(sort, text)
        self._refused(event, f"{record.kind} of {record.name}")

    def _refused(self, event: Event, what: str) -> None:
        """Tell of what the model has refused. Numbers differ from one time to the next: they make no new mistake.

        The error itself comes out of the guest's call.
        """
        if isinstance(event.error, GuestError):
            why = str(event.error)[:LONGEST]
            self._count(Sort.REFUSED, f"{what}: {why}", same=f"{what}: {_NUMBERS.sub('#', why)}")

    def _value(self, register: Register[Any]) -> int:
        return register.load(self.device.core.state.registers[register.bar.index])

    def _tell(self, sort: Sort, text: str, detail: str = "") -> None:
        """Tell of a mistake in an access."""
        self._count(sort, text, detail)
        if self.strict:
            raise DriverMistake(text)

    def _tell_late(self, sort: Sort, text: str, detail: str = "") -> None:
        """Tell of a mistake that no access has made: a test fails by it at its end."""
        self._count(sort, text, detail)
        self._late = self._late or text

    def _count(self, sort: Sort, text: str, detail: str = "", *, same: str = "") -> None:
        """Count a mistake, and log it the first time. Two are one if ``same`` is the same: by default the text."""
        told, key = self._told[sort], same or text
        if len(told) < MOST_OF_A_SORT:
            told.setdefault(key, text)
        counted = told.get(key, f"other {sort.value}")
        new = counted not in self.counts
        self.counts[counted] = self.counts.get(counted, 0) + 1
        if new:
            lead = "".join(f"\n  {record.line()}" for record in self._recent)
            more = f": {detail}" if detail else ""
            self.device.log.warning("the driver's mistake: %s%s; it came after%s", text, more, lead)


def _fits(place: Place) -> bool:
    """Whether the width of an access is that of the register, or is as good.

    NVMe (1.4 §3.1) and virtio (1.2 §4.1.3.1) let a driver access 8 bytes in two aligned halves. A register of a size
    that no access has is a row of smaller ones, as an Ethernet address.
    """
    if place.register is not None:
        return True
    if len(place.items) != 1:
        return False
    at, item = place.items[0]
    if item.size not in WIDTHS:
        return at <= place.offset and place.offset + place.count <= at + item.size
    return item.size == 8 and place.count == 4 and place.offset in (at, at + 4)
