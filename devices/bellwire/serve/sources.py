"""Where rings arrive at the device's end: the fds of doorbells, one source for each."""

from __future__ import annotations

import functools
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.model.core import Core
from bellwire.model.tally import Count
from bellwire.serve.noted import LINE, EventSlot, new_slot
from vfio_user import IoCommand, IoRegionServer, VfioUserError
from vfio_user.eventfds import take
from vfio_user.ioregionfd import SIZE as COMMAND_SIZE
from vfio_user.ioregionfd import decode_command

_MOST = (1 << 64) - 1  # who has the fd may add any number, again and again
IN_HOOK = 0x80  # in the last byte of a count in a slot: the hook of these rings runs. No honest client rings so often
BEGUN = 2  # a byte of a command that means nothing: it is set while the command is in work
clear_command = struct.Struct(f"{COMMAND_SIZE}x").pack_into

Bell = TypeVar("Bell", bound=Doorbell | tuple[Doorbell | IoRegion, int])
"""What an fd stands for: a doorbell, one value of a doorbell, or the doorbell at an offset of a row."""

Guard = Callable[..., int | None]
"""Runs device code. An exception in it is logged, and the result is then None."""


class Source(Protocol):
    """One fd on which rings arrive."""

    fds: tuple[int, ...]
    """All descriptors that a successor needs."""

    def gather(self) -> int:
        """Take the rings out of the fd, and return their number.

        1 says that this ring had come when the wait for it ended. If others may have come since, it is more than 1.
        """

    def run(self) -> None:
        """Run the hooks for the rings that were gathered."""

    @property
    def begun(self) -> bool:
        """Whether a process has died in the hook of what it had gathered here."""

    def again(self, *, repeats: bool, drop: bool) -> bool:
        """Gather the rings that a process which has died had gathered. True if there are any.

        ``repeats``: the value that its hook was at is delivered again. ``drop``: not the one that it was at.
        """

    def discard(self) -> None:
        """Drop the rings that were gathered, but answer a guest that waits for one."""

    def close(self) -> None:
        """Close the fds. The source owns them."""

    guard: Guard
    """Runs the hooks."""
    mechanism: str
    """By what the rings come."""


class CountingSource(Generic[Bell]):
    """What the two kinds of sources with an eventfd have in common: the count of rings that were gathered.

    A source owns its descriptors: those that it is given, as ``fds``, or those that it makes.
    """

    mechanism: str

    def __init__(self, core: Core, bell: Bell, guard: Guard, fds: tuple[int, ...], slot: EventSlot | None) -> None:
        self.fds = fds or (_eventfd(),)
        (self.fd,) = self.fds
        self._bell = bell
        self.guard = guard
        self._counter, self._older = slot or new_slot()
        self._noted = self._counter.cast("Q")
        self._hook = self._counter[7:]
        self._aside = False
        self._count = 0
        self._rings = core.tally.ring(self.mechanism, name_of(bell))

    def _put_aside(self) -> None:
        """Note the rings that were gathered as older ones: the next read of the eventfd replaces the other count."""
        self._older[0] = self._count & _MOST
        self._noted[0] = 0
        self._aside = True

    def _clear(self) -> None:
        self._noted[0] = self._older[0] = 0
        self._aside = False

    @property
    def begun(self) -> bool:
        """Whether a process has died in the hook."""
        return bool(self._hook[0] & IN_HOOK)

    def again(self, *, repeats: bool, drop: bool) -> bool:
        """A ring means "look", so it does no harm to look again."""
        if drop:
            self._clear()
        self._hook[0] &= ~IN_HOOK
        self._count = self._older[0] + self._noted[0]
        self._put_aside()
        return bool(self._count)

    def discard(self) -> None:
        """Drop the rings that were gathered."""
        self._count = 0
        self._clear()

    def close(self) -> None:
        """Close the eventfd."""
        os.close(self.fd)


class EventSource(CountingSource[Bell]):
    """A doorbell by ioeventfd: KVM adds rings to an eventfd, and the worker reads the sum."""

    mechanism = "ioeventfd"

    def __init__(
        self,
        core: Core,
        bell: Bell,
        ring: Callable[[Bell, int], None],
        guard: Guard,
        fds: tuple[int, ...] = (),
        slot: EventSlot | None = None,
    ) -> None:
        super().__init__(core, bell, guard, fds, slot)
        self.ring = ring

    def gather(self) -> int:
        """Read the eventfd, and add its count."""
        if self._count:
            self._put_aside()
        count = take(self.fd, self._counter)  # 0 if a client, which has the fd too, has read it
        self._count += count
        return count

    def run(self) -> None:
        """Call the hook once for all rings that were gathered."""
        count, self._count = self._count, 0
        if count:
            self._rings[0] += count
            self._hook[0] = IN_HOOK
            self.guard(self.ring, self._bell, count)
            self._noted[0] = 0
            if self._aside:
                self._clear()


class ShadowSource(CountingSource[Bell]):
    """A doorbell by shadow ioeventfd: an eventfd that counts the rings, and a cell with the value of the last one.

    The cell is read when the rings are gathered. The worker then drains its socket, and runs the hook last. So the hook
    sees all writes that were posted before the value was stored, even if that value belongs to a later ring.
    """

    mechanism = "shadow"

    def __init__(
        self,
        core: Core,
        bell: Bell,
        cell: memoryview,
        ring: Callable[[Bell, int, int], None],
        guard: Guard,
        fds: tuple[int, ...] = (),
        slot: EventSlot | None = None,
    ) -> None:
        super().__init__(core, bell, guard, fds, slot)
        self._cell = cell
        self._ring = ring
        self._value = 0

    def gather(self) -> int:
        """Read the eventfd, and add its count. Then read the value: who rings stores it first."""
        if self._count:
            self._put_aside()
        self._count += take(self.fd, self._counter)
        self._value = self._cell[0]
        return self._count + 1  # the value may be that of a ring that is still to come

    def run(self) -> None:
        """Call the hook once for all rings that were gathered, with the last value."""
        count, self._count = self._count, 0
        if count:
            self._rings[0] += count
            self._hook[0] = IN_HOOK
            self.guard(self._ring, self._bell, count, self._value)
            self._noted[0] = 0
            if self._aside:
                self._clear()

    def again(self, *, repeats: bool, drop: bool) -> bool:
        """Ring with the value that the cell has now."""
        self._value = self._cell[0]
        return super().again(repeats=repeats, drop=drop)


class CommandSource:
    """Doorbells with values, or one ioregion, by ioregionfd: commands of 32 bytes on a socket.

    It owns both ends of the socket. The client gets a duplicate of ``client_fd``.
    """

    mechanism = "ioregionfd"

    def __init__(
        self,
        core: Core,
        guard: Guard,
        failed: Callable[[CommandSource, VfioUserError], None],
        fds: tuple[int, ...] = (),
        line: memoryview | None = None,
    ) -> None:
        ours, self._theirs = (socket.socket(fileno=fd) for fd in fds) if fds else _pair()
        self.fds: tuple[int, ...] = (ours.fileno(), self._theirs.fileno())
        ours.setblocking(False)
        self.wire = IoRegionServer(ours)
        self.fd = ours.fileno()
        self.client_fd = self._theirs.fileno()
        self._targets: list[Doorbell | IoRegion] = []
        self._rings: list[Count] = []
        self._core = core
        self.guard = guard
        self._failed = failed
        self._commands: deque[IoCommand] = deque()
        self._line = memoryview(bytearray(LINE)) if line is None else line  # the commands as they came
        self._end = 0  # of the last command in it
        self._socket = select.poll()
        self._socket.register(ours, select.POLLIN)

    def user_data(self, target: Doorbell | IoRegion) -> int:
        """The number that identifies ``target`` in the commands of this socket."""
        if target not in self._targets:
            self._targets.append(target)
            self._rings.append(self._core.tally.ring(self.mechanism, target.name))
        return self._targets.index(target)

    def gather(self) -> int:
        """Take the commands off the socket, in order."""
        try:
            while self._end < LINE - COMMAND_SIZE:
                command = self.wire.receive(self._line[self._end : self._end + COMMAND_SIZE + 1])
                if command is None:
                    break
                self._commands.append(command)
                self._end += COMMAND_SIZE
                if not self._socket.poll(0):  # this costs less than a receive that finds nothing
                    break
        except VfioUserError as error:
            self._failed(self, error)
        return len(self._commands)

    def run(self) -> None:
        """Hand each command to its doorbell or ioregion, and answer those that ask for a response."""
        commands, line = self._commands, self._line
        while commands:
            at = self._end - COMMAND_SIZE * len(commands)
            command = commands.popleft()
            target = self._target(command)
            result = None
            if target is not None:
                self._rings[command.user_data][0] += 1
                line[at + BEGUN] = 1
                result = self.guard(self._deliver, target, command)
            if command.respond:
                self._respond(result, at)
            else:
                clear_command(line, at)
        self._end = 0

    @property
    def begun(self) -> bool:
        """Whether a process has died in the hook of a command."""
        return bool(self._line[self._first(bytes(self._line)) + BEGUN])

    @staticmethod
    def _first(content: bytes) -> int:
        """Where the first command is that is not done."""
        left = content.lstrip(b"\0")
        return (LINE - len(left)) // COMMAND_SIZE * COMMAND_SIZE if left else 0

    def again(self, *, repeats: bool, drop: bool) -> bool:
        """Find the commands that were gathered, and are not done."""
        content = bytes(self._line)
        self._end = at = self._first(content)
        while any(data := content[self._end : self._end + COMMAND_SIZE]):
            self._commands.append(decode_command(data))
            self._end += COMMAND_SIZE
        if self._commands and content[at + BEGUN] and (drop or not repeats):
            if self._commands.popleft().respond:
                self._respond(None, at)
            clear_command(self._line, at)
        elif self._commands:
            self._line[at + BEGUN] = 0
        return bool(self._commands)

    def discard(self) -> None:
        """Drop the posted commands. A guest that waits for a response gets all ones, as from a device in reset."""
        commands = self._commands
        while commands:
            at = self._end - COMMAND_SIZE * len(commands)
            if commands.popleft().respond:
                self._respond(None, at)
            clear_command(self._line, at)
        self._end = 0

    def close(self) -> None:
        """Close both ends. KVM or the relay then uses messages again."""
        self._commands.clear()
        self.wire.close()
        self._theirs.close()

    def _respond(self, value: int | None, at: int) -> None:
        """Answer the command ``at`` that offset; all ones if there is no value."""
        done = functools.partial(clear_command, self._line, at)
        try:
            self.wire.respond((1 << 64) - 1 if value is None else value, done)
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


def _eventfd() -> int:
    return os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


def name_of(bell: Doorbell | tuple[Doorbell | IoRegion, int]) -> str:
    """The name of a doorbell for the tally. For a doorbell of a row it includes the offset."""
    if isinstance(bell, Doorbell):
        return bell.name
    whole, number = bell
    return whole.name if isinstance(whole, Doorbell) else f"{whole.name}+{number:#x}"
