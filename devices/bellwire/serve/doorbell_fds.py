"""The device's end of doorbells that ring without a message: eventfds and ioregionfd sockets.

An epoll in an epoll
====================

The fds of all doorbells are in one epoll, and the descriptor of this inner epoll is in the epoll of the loop. The
inner epoll can be read while any of its fds can be read. So the worker finds out by a single system call whether
anything has rung, however many doorbells there are. It does so before every reply, since a reply flushes rings.

There are two other ways, and both are worse. The worker could ask the loop's own epoll. That would report everything
else too: a descriptor that the device watches may be ready, but the worker must not handle it in the middle of a
message, so it would be reported again each time. Or the worker could call poll(2) on all the fds. Its cost grows with
their number, and an nvme has two for each pair of queues.

Both epolls are level-triggered. Gathering takes the rings out of an fd, so the inner epoll is not ready again until
something rings again. What one turn leaves in an fd ends the wait of the next turn. Edge triggering would save that
second look, but would lose a ring for good when a turn ends early, as it does when a client leaves.

Rings are handled in two steps: :meth:`DoorbellFds.gather` takes the rings out of the fds, and :meth:`DoorbellFds.run`
runs the hooks. :mod:`bellwire.serve.served` explains why there are two.
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

MOST_COMMANDS = 4096  # taken from one socket at a time: more than it holds, so a reply flushes all, and a flood ends

Bell = TypeVar("Bell", bound=Doorbell | tuple[Doorbell | IoRegion, int])
"""What an eventfd stands for: a doorbell, one value of a doorbell, or the doorbell at an offset of a row."""

Guard = Callable[..., int | None]
"""Runs device code. An exception in it is logged, and the result is then None."""


class Source(Protocol):
    """One fd on which rings arrive."""

    def gather(self) -> None:
        """Take the rings out of the fd."""

    def run(self) -> None:
        """Run the hooks for the rings that were gathered."""

    def discard(self) -> None:
        """Drop the rings that were gathered, but answer a guest that waits for one."""

    def close(self) -> None:
        """Close the fds. The source owns them."""


class EventSource(Generic[Bell]):
    """A doorbell by ioeventfd: KVM adds rings to an eventfd, and the worker reads the sum."""

    def __init__(self, core: Core, bell: Bell, ring: Callable[[Bell, int], None], guard: Guard) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._bell = bell
        self._ring = ring
        self._guard = guard
        self._counter = bytearray(SIZE)
        self._count = 0
        self._rings = core.tally.ring("ioeventfd", _name(bell))

    def gather(self) -> None:
        """Read the eventfd, and add its count."""
        self._count += take(self.fd, self._counter)  # 0 if a client, which has the fd too, has read it

    def run(self) -> None:
        """Call the hook once for all rings that were gathered."""
        count, self._count = self._count, 0
        if count:
            self._rings[0] += count
            self._guard(self._ring, self._bell, count)

    def discard(self) -> None:
        """Drop the rings that were gathered."""
        self._count = 0

    def close(self) -> None:
        """Close the eventfd."""
        os.close(self.fd)


class CommandSource:
    """Doorbells with values, or one ioregion, by ioregionfd: commands of 32 bytes on a socket.

    It owns both ends of the socket. The client gets a duplicate of ``client_fd``.
    """

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
        """The number that identifies ``target`` in the commands of this socket."""
        if target not in self._targets:
            self._targets.append(target)
            self._rings.append(self._core.tally.ring("ioregionfd", target.name))
        return self._targets.index(target)

    def gather(self) -> None:
        """Take the commands off the socket, in order."""
        try:
            for _ in range(MOST_COMMANDS - len(self._commands)):
                command = self.wire.receive()
                if command is None:
                    break
                self._commands.append(command)
                if not self._socket.poll(0):  # this costs less than a receive that finds nothing
                    break
        except VfioUserError as error:
            self._failed(self, error)

    def run(self) -> None:
        """Hand each command to its doorbell or ioregion, and answer those that ask for a response."""
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
        """Drop the posted commands. A guest that waits for a response gets all ones, as from a device in reset."""
        commands = self._commands
        while commands:
            if commands.popleft().respond:
                self._respond(None)

    def close(self) -> None:
        """Close both ends. KVM or the relay then uses messages again."""
        self._commands.clear()
        self.wire.close()
        self._theirs.close()

    def _respond(self, value: int | None) -> None:
        try:
            self.wire.respond((1 << 64) - 1 if value is None else value)
        except VfioUserError as error:
            self._failed(self, error)

    def _target(self, command: IoCommand) -> Doorbell | IoRegion | None:
        """The doorbell or ioregion that the command is for. None, and a warning, if it lies in no sub-region."""
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
        """Do what the command says. Returns the value of a read, and 0 for a write."""
        if isinstance(target, IoRegion):
            if not command.write:
                return self._core.ioregion_read(target, command.offset, command.size)
            self._core.ioregion_write(target, command.offset, command.size, command.data)
        elif not command.write:
            return int.from_bytes(bytes([target.bar.fill]) * command.size, "little")  # as a REGION_READ message
        elif command.offset == 0:
            self._core.ring_value(target, command.data)
        return 0


class DoorbellFds:
    """All doorbell fds of one device for one client. They are made when the client asks, and closed when it leaves."""

    def __init__(self, core: Core, guard: Guard) -> None:
        self._core = core
        self._guard = guard
        self._epoll = select.epoll()
        self.poll = self._epoll.poll
        """``poll(0)`` gives the fds that have rung and are not gathered yet."""
        self._sources: dict[int, Source] = {}
        self._events: dict[Doorbell | tuple[Doorbell | IoRegion, int], EventSource[Any]] = {}
        self._regions: dict[IoRegion, CommandSource] = {}
        self._rung: list[Source] = []
        self._values: CommandSource | None = None

    def fileno(self) -> int:
        """The descriptor of the inner epoll. It can be read while anything has rung."""
        return self._epoll.fileno()

    def sub_regions(self, index: int, mechanisms: frozenset[Mechanism]) -> list[SubRegion]:
        """The answer to GET_REGION_IO_FDS for a region, limited to ``mechanisms``. A second call gives the same fds.

        The eventfds of single values come last: if the client cannot take all descriptors, it goes without these.
        """
        plan = self._core.layout.bars.get(index)
        if plan is None:
            return []
        pio = plan.bar.io
        found: list[SubRegion] = []
        for bell in plan.doorbells:
            if bell.values is not None:
                continue
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
        if Mechanism.IOEVENTFD in mechanisms:
            found += [
                IoEventFd(bell.offset, bell.size, self._event((bell, value), self._ring_with), value, pio)
                for bell in plan.doorbells
                for value in bell.values or ()
            ]
        return found

    def gather(self) -> bool:
        """Take all rings out of their fds. True if there is anything to run."""
        for fd, _ in self.poll(0):
            source = self._sources.get(fd)
            if source is not None:
                source.gather()
                self._rung.append(source)
        return bool(self._rung)

    def run(self) -> None:
        """Run the hooks for the rings that were gathered."""
        rung, self._rung = self._rung, []
        for source in rung:
            source.run()

    def discard(self) -> None:
        """Drop the rings from before a reset. A guest that waits for a response gets one."""
        self.gather()
        rung, self._rung = self._rung, []
        for source in rung:
            source.discard()

    def close(self) -> None:
        """Close every fd that was handed out."""
        self._epoll.close()
        for source in self._sources.values():
            source.close()

    def _event(self, bell: Bell, ring: Callable[[Bell, int], None]) -> int:
        """The eventfd of a doorbell, made at the first call."""
        source = self._events.get(bell)
        if source is None:
            source = EventSource(self._core, bell, ring, self._guard)
            self._events[bell] = source
            self._add(source.fd, source)
        return source.fd

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
        """Close a socket whose other end has closed or sends nonsense. Accesses then come as messages."""
        self._core.log.warning(("ioregionfd", source.fd), "ioregionfd socket closed: %s", error)
        if self._sources.pop(source.fd, None) is not None:
            self._epoll.unregister(source.fd)
            source.close()
        self._regions = {region: known for region, known in self._regions.items() if known is not source}
        if self._values is source:
            self._values = None


def _name(bell: Doorbell | tuple[Doorbell | IoRegion, int]) -> str:
    """The name of a doorbell for the tally. For a doorbell of a row it includes the offset."""
    if isinstance(bell, Doorbell):
        return bell.name
    whole, number = bell
    return whole.name if isinstance(whole, Doorbell) else f"{whole.name}+{number:#x}"
