"""What a server asks of its client: guest memory by message. And the commands that come in meanwhile."""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum

from vfio_user.channel import Channel, Message, close_fds, command_name
from vfio_user.constants import Command, MessageFlags
from vfio_user.errors import ProtocolError, RemoteError, Stalemate, TimedOut, VfioUserError
from vfio_user.transfer import DmaAccess

MOST_QUEUED = 1024  # commands, and
MOST_QUEUED_BYTES = 16 << 20  # of payload, and
MOST_QUEUED_FDS = 512  # with them, that may come in while a DMA message waits for its reply
GRACE = 1.0  # seconds for a client that waits for us itself; QEMU would give up on us after 5
LARGEST_READ = 64 << 10
"""Bytes asked for by one DMA_READ, even if the client would take more.

QEMU (11.1) sends a reply by one call and forgets what the socket had no room for; what comes after it makes no sense.
A message that fits into half of a socket's buffer (208 KiB, unless sysctl says otherwise) is sent whole, or not yet.
"""
MEANWHILE = frozenset((Command.REGION_READ, Command.DEVICE_SET_IRQS, Command.DMA_MAP, Command.DMA_UNMAP))
"""Commands that may be answered while device code waits for its DMA: of these, only a read is seen by the device."""


class Layout(Enum):
    """How a client lays DMA messages out."""

    UNKNOWN = 0
    RATIFIED = 1
    OLD = 2


class DmaRequests:
    """Sends DMA_READ and DMA_WRITE and waits for their replies; keeps, in order, the commands that come before them.

    Some clients (QEMU is one) do not look at what we ask while they wait for us themselves. For their sake, reads of
    registers are answered during the wait, when they do not come after something that must be handled first; where that
    does not help, the DMA ends in a Stalemate. A client is given a moment, once, to show that it is not of that kind.
    """

    def __init__(self, channel: Channel, timeout: float, handle: Callable[[Message], None]) -> None:
        self.answering: int | None = None
        """The command whose reply the client waits for now; :meth:`Session._handle` keeps it."""
        self.kept: deque[Message] = deque()
        """Commands that came during a wait; :meth:`pop` takes the oldest."""
        self.outstanding = False
        """Whether device code waits for its DMA now."""
        self._channel = channel
        self._timeout = timeout
        self._handle = handle
        self._bytes = 0
        self._fds = 0
        self._waited_for = 0  # commands in the queue that want a reply
        self._deaf = False  # the client has shown that it does not listen while it waits
        self._layout = Layout.UNKNOWN
        self._sought = Command.DMA_READ  # what device code has asked for: errors name it
        self._next_id = 0

    def pop(self) -> Message:
        """The oldest command that was kept."""
        message = self.kept.popleft()
        self._count(message, -1)
        return message

    def read(self, address: int, count: int, most: int) -> bytes:
        """Guest memory by DMA_READ, at most ``most`` bytes at a time."""
        data = bytearray()
        self._sought = Command.DMA_READ
        if self._layout is not Layout.RATIFIED:
            self._find_layout(address)
        for request in _pieces(address, count, min(most, LARGEST_READ)):
            reply = self._ask(Command.DMA_READ, [request.pack()])
            if DmaAccess.unpack(reply, "DMA_READ reply") != request or len(reply) != 16 + request.count:
                raise ProtocolError(f"DMA_READ reply: not the {request.count} bytes at {request.address:#x} asked for")
            data += reply[16:]
        return bytes(data)

    def write(self, address: int, data: memoryview, most: int) -> None:
        """Write guest memory by DMA_WRITE, ``most`` bytes at a time."""
        self._sought = Command.DMA_WRITE
        if self._layout is not Layout.RATIFIED:
            self._find_layout(address)
        for request in _pieces(address, len(data), most):
            start = request.address - address
            reply = self._ask(Command.DMA_WRITE, [request.pack(), data[start : start + request.count]])
            if DmaAccess.unpack(reply, "DMA_WRITE reply") != request:
                raise ProtocolError(f"DMA_WRITE reply: not for the {request.count} bytes at {request.address:#x} sent")

    def close(self) -> None:
        """Forget the commands that were kept."""
        while self.kept:
            close_fds(self.pop().fds)

    def _find_layout(self, address: int) -> None:
        """Refuse a client that lays messages out otherwise: a write of nothing, which harms nobody, tells them apart.

        In QEMU 10.1 to 10.2.2 the count has 32 bits: our data would arrive shifted by four bytes. There, a reply to
        DMA_WRITE is a bare header. An error says nothing, and is left to the message that is to follow.
        """
        if self._layout is Layout.UNKNOWN:
            try:
                reply = self._ask(Command.DMA_WRITE, [DmaAccess(address, 0).pack()])
            except RemoteError:
                return
            self._layout = Layout.RATIFIED if reply else Layout.OLD
        if self._layout is Layout.OLD:
            raise VfioUserError(
                "DMA by message: the client has QEMU's old layout of it (10.1 to 10.2.2), which would corrupt the "
                "guest's memory: share the memory (share=on), or use a newer QEMU",
                errno.ENOTSUP,
            )

    def _ask(self, command: Command, parts: Sequence[bytes | memoryview]) -> memoryview:
        """Send a command to the client and return its reply's payload."""
        if self._deaf and self.answering is not None:
            raise Stalemate(self._sought.name, command_name(self.answering))
        self._channel.keep()
        self._next_id = (self._next_id + 1) & 0xFFFF
        self._channel.send(self._next_id, command, 0, 0, parts)
        self.outstanding = True
        try:
            return self._await(command)
        finally:
            self.outstanding = False

    def _await(self, command: Command) -> memoryview:
        number = self._next_id
        now = time.monotonic()
        deadline = now + self._timeout
        patience = min(deadline, now if self._deaf else now + GRACE)
        while True:
            waited_for = self.answering is not None or self._waited_for > 0
            try:
                message = self._channel.receive_by(patience if waited_for else deadline)
            except TimedOut:
                if not waited_for or patience == deadline:
                    raise
                self._deaf = True
                self._answer_first()
                continue
            if message.flags & 0xF != MessageFlags.REPLY:
                self._keep(message)
                continue
            close_fds(message.fds)
            if message.id == number and message.command == command:
                if message.flags & MessageFlags.ERROR:
                    raise RemoteError(command.name, message.error)
                return message.payload
            if time.monotonic() >= deadline:
                raise TimedOut(f"the peer sends replies, but none to {command.name}")

    def _answer_first(self) -> None:
        """Give the client the replies that it waits for."""
        if self.answering is not None:
            raise Stalemate(self._sought.name, command_name(self.answering))
        while self._waited_for:
            if self.kept[0].command not in MEANWHILE:
                waited_for = next(message for message in self.kept if _wants_reply(message))
                raise Stalemate(self._sought.name, waited_for.name)
            self._handle(self.pop())

    def _keep(self, message: Message) -> None:
        kept = message._replace(payload=memoryview(bytes(message.payload)))
        self.kept.append(kept)
        self._count(kept, 1)
        if len(self.kept) > MOST_QUEUED or self._bytes > MOST_QUEUED_BYTES or self._fds > MOST_QUEUED_FDS:
            raise TimedOut(f"{len(self.kept)} commands came instead of the reply to a DMA message")

    def _count(self, message: Message, sign: int) -> None:
        self._bytes += sign * len(message.payload)
        self._fds += sign * len(message.fds)
        self._waited_for += sign * _wants_reply(message)


def _wants_reply(message: Message) -> bool:
    return not message.flags & MessageFlags.NO_REPLY


def _pieces(address: int, count: int, most: int) -> list[DmaAccess]:
    return [DmaAccess(address + at, min(most, count - at)) for at in range(0, count, most)]
