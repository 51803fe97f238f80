"""The device's end of doorbells that ring without a message: eventfds and ioregionfd sockets.

An epoll in an epoll
====================

All of them hang in one epoll of their own, and that epoll's descriptor hangs in the loop's: it can be read while any
of them can. So "has anything rung?" is a single system call, however many doorbells there are, and is asked before
every reply (a reply flushes rings). The loop's own epoll could be asked as well, but would answer about everything
else too: a descriptor of the device's that is ready and not read yet, which nobody may handle in the middle of a
message, would come back each time. And a poll(2) of all of them costs by their number: an nvme has two for each of
its queues.

Both are level-triggered. What is gathered is taken out of its descriptor, so the inner epoll is not ready again until
something rings again; and what one turn leaves behind ends the next one's wait. Edges would save the second look, and
lose a ring for good where a turn ends early, as it does when a client goes.

Ringing is in two steps: :meth:`DoorbellFds.gather` takes what has been rung out of the fds, :meth:`DoorbellFds.run`
runs the hooks. Why there are two, :mod:`bellwire.serve.served` tells.
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.model.core import Core
from bellwire.model.tally import Count
from vfio_user import IoCommand, IoEventFd, IoRegionFd, IoRegionServer, Mechanism, SubRegion, VfioUserError
from vfio_user.eventfds import SIZE, take

MOST_COMMANDS = 4096  # taken from one socket at a time: more than it holds, so a read flushes all, and a flood ends

Bell = TypeVar("Bell", bound=Doorbell | tuple[IoRegion, int])

Guard = Callable[..., int | None]
"""Runs device code; an exception in it is logged, and None comes back."""


class Source(Protocol):
    """One fd that rings."""

    def gather(self) -> None:
        """Take what was rung out of the fd."""

    def run(self) -> None:
        """Run the hooks for what was gathered."""

    def discard(self) -> None:
        """Drop what was gathered, but answer whoever waits."""

    def close(self) -> None:
        """Close the fds."""


class EventSource(Generic[Bell]):
    """A doorbell by ioeventfd: KVM counts, we read the count."""

    def __init__(self, core: Core, bell: Bell, ring: Callable[[Bell, int], None], guard: Guard) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._bell = bell
        self._ring = ring
        self._guard = guard
        self._counter = bytearray(SIZE)
        self._count = 0
        self._rings = core.tally.ring("ioeventfd", _name(bell))

    def gather(self) -> None:
        """Add the eventfd's count."""
        self._count += take(self.fd, self._counter)  # nothing, where somebody else who holds the fd has read it

    def run(self) -> None:
        """One hook call for however many rings."""
        count, self._count = self._count, 0
        if count:
            self._rings[0] += count
            self._guard(self._ring, self._bell, count)

    def discard(self) -> None:
        """Forget the rings."""
        self._count = 0

    def close(self) -> None:
        """Close the eventfd."""
        os.close(self.fd)


class CommandSource:
    """Doorbells with values, or one stretch, by ioregionfd: 32-byte commands on a socket."""

    def __init__(self, core: Core, guard: Guard, failed: Callable[[CommandSource, VfioUserError], None]) -> None:
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        ours.setblocking(False)
        self.wire = IoRegionServer(ours)
        self.fd = ours.fileno()
        self.client_fd = self._theirs.fileno()
        self._targets: list[Doorbell | IoRegion] = []
        self._rings: list[Count] = []
        self._core = core
        self._guard = guard
        self._failed = failed
        self._commands: deque[IoCommand] = deque()
        self._socket = select.poll()
        self._socket.register(ours, select.POLLIN)

    def user_data(self, target: Doorbell | IoRegion) -> int:
        """By which commands for ``target`` are told apart from others."""
        if target not in self._targets:
            self._targets.append(target)
            self._rings.append(self._core.tally.ring("ioregionfd", target.name))
        return self._targets.index(target)

    def gather(self) -> None:
        """Take commands off the socket, in order."""
        try:
            for _ in range(MOST_COMMANDS - len(self._commands)):
                command = self.wire.receive()
                if command is None:
                    break
                self._commands.append(command)
                if not self._socket.poll(0):  # a receive that finds nothing costs more
                    break
        except VfioUserError as error:
            self._failed(self, error)

    def run(self) -> None:
        """Hand each command to its doorbell or stretch, and answer where an answer is awaited."""
        commands = self._commands
        while commands:
            command = commands.popleft()
            target = self._target(command)
            result = None
            if target is not None:
                self._rings[command.user_data][0] += 1
                result = self._guard(self._deliver, target, command)
            if command.respond:
                self._respond(result)

    def discard(self) -> None:
        """Drop the posted ones; a guest that waits gets all ones, as from a device in reset."""
        commands = self._commands
        while commands:
            if commands.popleft().respond:
                self._respond(None)

    def close(self) -> None:
        """Close both ends: KVM or the relay falls back to messages."""
        self._commands.clear()
        self.wire.close()
        self._theirs.close()

    def _respond(self, value: int | None) -> None:
        try:
            self.wire.respond((1 << 64) - 1 if value is None else value)
        except VfioUserError as error:
            self._failed(self, error)

    def _target(self, command: IoCommand) -> Doorbell | IoRegion | None:
        """What the command is for; None, and a word in the log, if nothing that was handed out."""
        if command.user_data < len(self._targets):
            target = self._targets[command.user_data]
            if command.offset + command.size <= target.size:
                return target
        self._core.log.warning(
            ("ioregionfd", "outside"),
            "refused: ioregionfd command: user_data %d, offset %#x, size %d lies in no sub-region that was handed out",
            command.user_data,
            command.offset,
            command.size,
        )
        return None

    def _deliver(self, target: Doorbell | IoRegion, command: IoCommand) -> int:
        """What the command does; the value of a read, 0 for a write."""
        if isinstance(target, IoRegion):
            if not command.write:
                return self._core.ioregion_read(target, command.offset, command.size)
            self._core.ioregion_write(target, command.offset, command.size, command.data)
        elif not command.write:
            return int.from_bytes(bytes([target.bar.fill]) * command.size, "little")  # as by message
        elif command.offset == 0:
            self._core.ring_value(target, command.data)
        return 0


class DoorbellFds:
    """All fds of one device for one client: made when the client asks, gone when it leaves."""

    def __init__(self, core: Core, guard: Guard) -> None:
        self._core = core
        self._guard = guard
        self._epoll = select.epoll()
        self.poll = self._epoll.poll
        """Called with 0: what has rung and was not gathered."""
        self._sources: dict[int, Source] = {}
        self._events: dict[Doorbell | tuple[IoRegion, int], EventSource[Any]] = {}
        self._regions: dict[IoRegion, CommandSource] = {}
        self._rung: list[Source] = []
        self._values: CommandSource | None = None

    def fileno(self) -> int:
        """Readable while anything has rung."""
        return self._epoll.fileno()

    def sub_regions(self, index: int, mechanisms: frozenset[Mechanism]) -> list[SubRegion]:
        """What GET_REGION_IO_FDS says about a region, within ``mechanisms``; asking twice gives the same fds."""
        plan = self._core.layout.bars.get(index)
        if plan is None:
            return []
        pio = plan.bar.io
        found: list[SubRegion] = []
        for bell in plan.doorbells:
            if bell.value:
                if Mechanism.IOREGIONFD in mechanisms:
                    found.append(self._by_value(bell, pio))
            elif Mechanism.IOEVENTFD in mechanisms:
                size = 0 if bell.match is None else bell.size
                found.append(IoEventFd(bell.offset, size, self._event(bell, self._core.ring), bell.match, pio))
        for region in plan.ioregions:
            if region in self._core.by_event and Mechanism.IOEVENTFD in mechanisms:
                found += [
                    IoEventFd(region.offset + at, 0, self._event((region, at), self._core.ring_in_row), None, pio)
                    for at in range(0, self._core.by_event[region] * region.bell, region.bell)
                ]
            elif Mechanism.IOREGIONFD in mechanisms:
                source = self._regions.get(region) or self._commands([region])
                found.append(IoRegionFd(region.offset, region.size, source.client_fd, 0, pio, region.posted))
        return found

    def gather(self) -> bool:
        """Take everything that has rung out of its fd; whether there is anything to run."""
        for fd, _ in self.poll(0):
            source = self._sources.get(fd)
            if source is not None:
                source.gather()
                self._rung.append(source)
        return bool(self._rung)

    def run(self) -> None:
        """Run the hooks of what was gathered."""
        rung, self._rung = self._rung, []
        for source in rung:
            source.run()

    def discard(self) -> None:
        """A reset: what rang before it means nothing any more, but nobody is left waiting."""
        self.gather()
        rung, self._rung = self._rung, []
        for source in rung:
            source.discard()

    def close(self) -> None:
        """Close every fd that was handed out."""
        self._epoll.close()
        for source in self._sources.values():
            source.close()
        self._sources.clear()
        self._events.clear()
        self._regions.clear()

    def _event(self, bell: Bell, ring: Callable[[Bell, int], None]) -> int:
        """The eventfd of a doorbell."""
        source = self._events.get(bell)
        if source is None:
            source = EventSource(self._core, bell, ring, self._guard)
            self._events[bell] = source
            self._add(source.fd, source)
        return source.fd

    def _by_value(self, bell: Doorbell, pio: bool) -> IoRegionFd:
        """Doorbells with values share one socket and are told apart by user_data."""
        if self._values is None:
            self._values = self._commands([])
        source = self._values
        return IoRegionFd(bell.offset, bell.size, source.client_fd, source.user_data(bell), pio, True)

    def _commands(self, targets: list[Doorbell | IoRegion]) -> CommandSource:
        source = CommandSource(self._core, self._guard, self._drop)
        for target in targets:
            source.user_data(target)
            if isinstance(target, IoRegion):
                self._regions[target] = source
        self._add(source.fd, source)
        return source

    def _add(self, fd: int, source: Source) -> None:
        self._sources[fd] = source
        self._epoll.register(fd, select.EPOLLIN)

    def _drop(self, source: CommandSource, error: VfioUserError) -> None:
        """A socket whose far end has gone or talks nonsense: close it, and the client goes on by message."""
        self._core.log.warning(("ioregionfd", source.fd), "ioregionfd socket closed: %s", error)
        if self._sources.pop(source.fd, None) is not None:
            self._epoll.unregister(source.fd)
            source.close()
        self._regions = {region: known for region, known in self._regions.items() if known is not source}
        if self._values is source:
            self._values = None


def _name(bell: Doorbell | tuple[IoRegion, int]) -> str:
    """A doorbell of a row has its offset in it."""
    return bell.name if isinstance(bell, Doorbell) else f"{bell[0].name}+{bell[1]:#x}"
