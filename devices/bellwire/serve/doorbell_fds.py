"""The device's end of doorbells that ring without a message: eventfds, shadow cells and ioregionfd sockets.

Two epolls
==========

The fds of all doorbells are in the epoll of the loop: a ring ends the worker's wait, and the wait says which fd it was.
They are also in an epoll of their own. By that the worker finds out in a single system call whether anything has rung
since, however many doorbells there are. It does so before every reply, since a reply flushes rings.

There are two other ways to find out, and both are worse. The worker could ask the loop's own epoll. That would report
everything else too: a descriptor that the device watches may be ready, but the worker must not handle it in the middle
of a message, so it would be reported again each time. Or the worker could call poll(2) on all the fds. Its cost grows
with their number, and an nvme has two for each pair of queues. For the wait, the epoll of the doorbells could itself be
in the loop's epoll. Then each ring would take one more system call, and a longer way through the kernel.

Both epolls are level-triggered. Gathering takes the rings out of an fd, so neither reports it until something rings
again. What one turn leaves in an fd ends the wait of the next turn. Edge triggering would lose a ring for good when a
turn ends early, as it does when a client leaves.

Rings are handled in two steps: :meth:`DoorbellFds.gather` takes the rings out of the fds, and :meth:`DoorbellFds.run`
runs the hooks. :mod:`bellwire.serve.served` explains why there are two.

A successor
===========

The ledger keeps every fd under the name of what rings it, and every question of the client that an answer was made for.
A successor answers the same questions again, in the same order, and takes the fds that it finds under the names. So it
has the same sources, with the same numbers and cells, as the process before it.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable
from typing import Any

from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.model.core import Core
from bellwire.serve.noted import NotedRings
from bellwire.serve.sources import Bell, CommandSource, EventSource, Guard, ShadowSource, Source, name_of
from vfio_user import (
    Cells,
    Estate,
    IoEventFd,
    IoRegionFd,
    Kept,
    Ledger,
    Mechanism,
    ShadowIoEventFd,
    SubRegion,
    VfioUserError,
)

COMMAND = (1 << 64) - 1
"""In the place of a source's number: a command of the client."""


class DoorbellFds:
    """All doorbell fds of one device for one client. They are made when the client asks, and closed when it leaves.

    ``watch`` and ``unwatch`` add a descriptor to the epoll of the loop, and remove it. ``by`` gives the guard for the
    rings of a mechanism.
    """

    def __init__(
        self,
        core: Core,
        guard: Guard,
        watch: Callable[[int], None],
        unwatch: Callable[[int], None],
        by: Callable[[str, Guard], Guard] = lambda _, guard: guard,
        ledger: Ledger | None = None,
        estate: Estate | None = None,
    ) -> None:
        self._core = core
        self._guard = guard
        self._watch = watch
        self._unwatch = unwatch
        self._by = by
        self._ledger = ledger or Ledger()
        self._estate = estate or Estate()
        self._noted = NotedRings(*self._estate.take("rings"))
        self._ledger.keep(Kept("rings", {}, (self._noted.fd,)))
        self._fresh: list[Kept] = []  # what the ledger is about to hear
        self._asked: set[str] = set()
        self._slots = 0
        self._epoll = select.epoll()
        self.poll = self._epoll.poll
        """``poll(0)`` gives the fds that have rung and are not gathered yet."""
        self._sources: dict[int, Source] = {}
        self._numbers: dict[int, int] = {}  # of the sources, the same in each successor
        self._events: dict[Doorbell | tuple[Doorbell | IoRegion, int], EventSource[Any]] = {}
        self._shadows: dict[Doorbell | tuple[Doorbell | IoRegion, int], ShadowIoEventFd] = {}
        self._cells: Cells | None = None
        self._regions: dict[IoRegion, CommandSource] = {}
        self._rung: list[Source] = []
        self._lent: set[int] = set()
        self._values: CommandSource | None = None

    def sub_regions(self, index: int, mechanisms: frozenset[Mechanism]) -> list[SubRegion]:
        """The answer to GET_REGION_IO_FDS for a region, limited to ``mechanisms``. A second call gives the same fds.

        The eventfds of single values come last: if the client cannot take all descriptors, it goes without these.
        """
        try:
            found = self._found(index, mechanisms)
            words = sorted(mechanisms)
            question = f"asked {index} {' '.join(words)}"
            if found and question not in self._asked:
                self._asked.add(question)
                self._fresh.append(Kept(question, {"index": index, "mechanisms": words}))
        finally:
            if self._fresh:
                self._ledger.keep(*self._fresh)
                self._fresh.clear()
        return found

    def take_over(self) -> None:
        """Make the sources of a process that has ended, with the fds that its ledger has kept."""
        for key, note in self._estate.below("asked"):
            self._asked.add(key)
            self._found(note["index"], frozenset(map(Mechanism, note["mechanisms"])))
        self._fresh.clear()

    def _found(self, index: int, mechanisms: frozenset[Mechanism]) -> list[SubRegion]:
        plan = self._core.layout.bars.get(index)
        if plan is None:
            return []
        pio = plan.bar.io
        found: list[SubRegion] = []
        for bell in plan.doorbells:
            if bell.values is not None:
                continue
            if bell.latest and Mechanism.SHADOW in mechanisms:
                found.append(self._shadow(bell, bell.offset, bell.size, pio, self._ring_latest))
            elif bell.value:
                if Mechanism.IOREGIONFD in mechanisms:
                    found.append(self._by_value(bell, pio))
            elif Mechanism.IOEVENTFD in mechanisms:
                size = 0 if bell.match is None else bell.size
                found.append(IoEventFd(bell.offset, size, self._event(bell), bell.match, pio))
        for region in plan.ioregions:
            if region in self._core.by_event and Mechanism.IOEVENTFD in mechanisms:
                found += [
                    IoEventFd(region.offset + at, 0, self._event((region, at)), None, pio)
                    for at in range(0, self._core.by_event[region] * region.bell, region.bell)
                ]
            elif region.latest and Mechanism.SHADOW in mechanisms:
                found += [
                    self._shadow((region, at), region.offset + at, region.bell, pio, self._write_latest)
                    for at in range(0, region.size, region.bell)
                ]
            elif Mechanism.IOREGIONFD in mechanisms:
                source = self._regions.get(region) or self._commands([region])
                found.append(IoRegionFd(region.offset, region.size, source.client_fd, 0, pio, region.posted))
        if Mechanism.IOEVENTFD in mechanisms:
            found += [
                IoEventFd(bell.offset, bell.size, self._event((bell, value)), value, pio)
                for bell in plan.doorbells
                for value in bell.values or ()
            ]
        return found

    def lend(self, row: IoRegion, offset: int) -> int:
        """The eventfd of a doorbell of a row. Its rings are gathered no more: somebody else reads the eventfd."""
        fd = self._event((row, offset))
        if self._fresh:  # whoever reads it goes on if this process dies
            self._ledger.keep(*self._fresh)
            self._fresh.clear()
        if fd not in self._lent:
            self._epoll.unregister(fd)
            self._unwatch(fd)
            self._lent.add(fd)
        return fd

    def take_back(self, row: IoRegion, offset: int) -> None:
        """Gather the rings of a doorbell again, those that nobody has read included."""
        source = self._events.get((row, offset))
        if source is not None and source.fd in self._lent:
            self._lent.remove(source.fd)
            self._epoll.register(source.fd, select.EPOLLIN)
            self._watch(source.fd)

    def gather(self, ready: Iterable[int]) -> int:
        """Take the rings out of those fds in ``ready`` that are doorbells'. Returns :meth:`Source.gather`'s sum."""
        count = 0
        for fd in ready:
            source = self._sources.get(fd)
            if source is not None and (rings := source.gather()):
                self._rung.append(source)
                count += rings
        return count

    def gather_all(self) -> bool:
        """Take the rings out of all fds. True if there is anything to run."""
        ready = self.poll(0)
        if ready:
            self.gather(fd for fd, _ in ready)
        return bool(self._rung)

    def culprit(self, *, command: bool, hung: bool) -> int:
        """What that process was at, if it is not to be done again: 0, COMMAND, or a number for :meth:`again`.

        So it is if the process ``hung`` in it, or if it died when it did it again for another one that had died of it.
        ``command``: if it was in no hook of a ring, it was at a command of the client.
        """
        sources = ((number, self._sources.get(fd)) for fd, number in self._numbers.items() if fd not in self._lent)
        rings = (number for number, source in sources if source is not None and source.begun)
        at = next(rings, COMMAND if command else 0)
        before, self._noted.suspect[0] = self._noted.suspect[0], at
        return at if hung or at == before else 0

    def again(self, *, repeats: bool, culprit: int) -> bool:
        """Gather what that process had gathered, and had not run: see :meth:`Source.again`."""
        for fd, source in self._sources.items():
            drop = self._numbers[fd] == culprit
            if fd not in self._lent and source.again(repeats=repeats, drop=drop):
                self._rung.append(source)
        return bool(self._rung)

    def survived(self) -> None:
        """All of that is done."""
        self._noted.suspect[0] = 0

    def run(self) -> None:
        """Run the hooks for the rings that were gathered."""
        rung, self._rung = self._rung, []
        for source in rung:
            source.run()

    def discard(self) -> None:
        """Drop the rings from before a reset. A guest that waits for a response gets one."""
        self.gather_all()
        rung, self._rung = self._rung, []
        for source in rung:
            source.discard()

    def rebuild(self) -> None:
        """The paths of the device are new: filters have come or gone."""
        for source in self._sources.values():
            source.guard = self._by(source.mechanism, self._guard)
        for bell, event in self._events.items():
            event.ring = self._ring_of(bell)

    def close(self) -> None:
        """Close every fd that was handed out."""
        self._epoll.close()
        for fd, source in self._sources.items():
            self._unwatch(fd)
            source.close()
        self._noted.close()
        if self._cells is not None:
            self._cells.close()
            self._cells = None

    def _event(self, bell: Doorbell | tuple[Doorbell | IoRegion, int]) -> int:
        """The eventfd of a doorbell, made at the first call."""
        source = self._events.get(bell)
        if source is None:
            key = _key("event", bell)
            slot = self._slot(key)
            place, fds = self._noted.event(slot), self._estate.take(key)
            source = EventSource[Any](self._core, bell, self._ring_of(bell), self._guard, fds, place)
            self._events[bell] = source
            self._add(key, source, slot)
        return source.fd

    def _shadow(
        self, bell: Bell, offset: int, size: int, pio: bool, ring: Callable[[Bell, int, int], None]
    ) -> ShadowIoEventFd:
        """The entry of a doorbell whose last value counts. Its eventfd and its cell are made at the first call."""
        entry = self._shadows.get(bell)
        if entry is None:
            if self._cells is None:
                self._cells = Cells(self._core.layout.latest_bells, next(iter(self._estate.take("cells")), None))
                self._fresh.append(Kept("cells", {}, (self._cells.fd,)))
            place, cell = self._cells.take(size)
            key = _key("shadow", bell)
            slot = self._slot(key)
            noted, fds = self._noted.event(slot), self._estate.take(key)
            source = ShadowSource(self._core, bell, cell, ring, self._guard, fds, noted)
            self._add(key, source, slot)
            entry = self._shadows[bell] = ShadowIoEventFd(offset, size, source.fd, self._cells.fd, place, None, pio)
        return entry

    def _ring_of(self, bell: Doorbell | tuple[Doorbell | IoRegion, int]) -> Callable[[Any, int], None]:
        """What a ring of ``bell`` calls: for a doorbell, the doorbell at an offset of a row, or one value of it."""
        if isinstance(bell, Doorbell):
            return self._core.ring
        return self._core.ring_in_row if isinstance(bell[0], IoRegion) else self._ring_with

    def _ring_latest(self, bell: Doorbell, count: int, value: int) -> None:
        """A doorbell was rung ``count`` times, and with ``value`` at last."""
        self._core.ring_value(bell, value, count)

    def _write_latest(self, bell: tuple[IoRegion, int], _count: int, value: int) -> None:
        """A doorbell of a row was rung, and with ``value`` at last."""
        region, offset = bell
        self._core.ioregion_write(region, offset, region.bell, value)

    def _ring_with(self, bell: tuple[Doorbell, int], count: int) -> None:
        """A doorbell was rung ``count`` times with one of its values."""
        self._core.ring_value(*bell, count)

    def _by_value(self, bell: Doorbell, pio: bool) -> IoRegionFd:
        """The entry of a doorbell with values. All of them share one socket; user_data identifies each."""
        if self._values is None:
            self._values = self._commands([])
        source = self._values
        return IoRegionFd(bell.offset, bell.size, source.client_fd, source.user_data(bell), pio, True)

    def _commands(self, targets: list[Doorbell | IoRegion]) -> CommandSource:
        key = f"commands {targets[0].name}" if targets else "commands"
        slot = self._slot(key)
        line, fds = self._noted.line(slot), self._estate.take(key)
        source = CommandSource(self._core, self._guard, self._drop, fds, line)
        for target in targets:
            source.user_data(target)
            if isinstance(target, IoRegion):
                self._regions[target] = source
        self._add(key, source, slot)
        return source

    def _slot(self, key: str) -> int:
        """The number of the slot that a source has in the notes: what it had before, or a new one."""
        slot = int(self._estate.note(key).get("slot", self._slots))
        self._slots = max(self._slots, slot + 1)
        return slot

    def _add(self, key: str, source: Source, slot: int) -> None:
        fd = source.fds[0]
        self._sources[fd], self._numbers[fd] = source, slot + 1
        source.guard = self._by(source.mechanism, self._guard)
        self._epoll.register(fd, select.EPOLLIN)
        self._watch(fd)
        self._fresh.append(Kept(key, {"slot": slot}, source.fds))

    def _drop(self, source: CommandSource, error: VfioUserError) -> None:
        """Close a socket whose other end has closed or sends nonsense. Accesses then come as messages."""
        self._core.log.warning(("ioregionfd", source.fd), "ioregionfd socket closed: %s", error)
        if self._sources.pop(source.fd, None) is not None:
            self._epoll.unregister(source.fd)
            self._unwatch(source.fd)
            source.close()
        self._regions = {region: known for region, known in self._regions.items() if known is not source}
        if self._values is source:
            self._values = None


def _key(kind: str, bell: Doorbell | tuple[Doorbell | IoRegion, int]) -> str:
    """The ledger's key of a doorbell's fd."""
    return f"{kind} {name_of(bell)}" if isinstance(bell, Doorbell) else f"{kind} {bell[0].name} {bell[1]:#x}"
