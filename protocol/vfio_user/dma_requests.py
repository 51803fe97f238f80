"""A server's DMA_READ and DMA_WRITE: guest memory by message, and the commands that arrive during the wait."""

from __future__ import annotations

import errno
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum, auto

from vfio_user.channel import Channel
from vfio_user.constants import Command, MessageFlags
from vfio_user.errors import ProtocolError, RemoteError, Stalemate, TimedOut, VfioUserError
from vfio_user.message import Message, close_fds, command_name
from vfio_user.transfer import DmaAccess

MOST_QUEUED = 1024  # commands that are kept while a DMA message waits for its reply
MOST_QUEUED_BYTES = 16 << 20  # of their payload
MOST_QUEUED_FDS = 512  # that came with them
GRACE = 1.0  # seconds that a client which waits for us gets to answer, once; QEMU gives up on us after 5
LARGEST_READ = 64 << 10
"""The most bytes that one DMA_READ asks for, even if the client allows more.

QEMU (11.1) sends a reply by one call, and drops what the socket has no room for. The stream cannot be understood after
that. The kernel takes a message whole, or not yet, if it fits into half of a socket's buffer (by default 208 KiB).
"""
MEANWHILE = frozenset((Command.REGION_READ, Command.DEVICE_SET_IRQS, Command.DMA_MAP, Command.DMA_UNMAP))
"""Commands that may be answered while device code waits for its DMA. Only REGION_READ calls into the device."""


class Layout(Enum):
    """The layout of a client's DMA messages: the ratified one, or that of QEMU 10.1 to 10.2.2."""

    UNKNOWN = auto()
    RATIFIED = auto()
    DIALECT = auto()
    """That of a dialect: there is nothing to find out."""
    OLD = auto()


class DmaRequests:
    """Sends DMA_READ and DMA_WRITE, and waits for their replies. Keeps the commands that arrive meanwhile, in order.

    Some clients (QEMU is one) do not read our commands while they wait for a reply from us. Such a client is
    recognised when it does not answer within :data:`GRACE`, once. From then on, the commands in :data:`MEANWHILE` are
    answered during the wait, unless an earlier command must be handled first. Where that does not help, the DMA
    raises Stalemate.
    """

    def __init__(
        self,
        channel: Channel,
        timeout: float,
        handle: Callable[[Message], None],
        access: type[DmaAccess] = DmaAccess,
    ) -> None:
        self.answering: int | None = None
        """The command whose reply the client waits for now, set by the session; None if there is none."""
        self.kept: deque[Message] = deque()
        """Commands that arrived during a wait. :meth:`pop` takes the oldest."""
        self.outstanding = False
        """Whether device code is waiting for a DMA message's reply."""
        self.channel = channel
        """Where the messages go; the session changes it."""
        self.twin = False
        """Whether nothing but replies comes there."""
        self._timeout = timeout
        self._handle = handle
        self._bytes = 0
        self._fds = 0
        self._waited_for = 0  # commands in the queue that want a reply
        self._deaf = False  # the client has shown that it does not answer while it waits
        self._access = access
        self._layout = Layout.UNKNOWN if access is DmaAccess else Layout.DIALECT
        self._sought = Command.DMA_READ  # what device code has asked for: errors name it
        self._next_id = 0

    def use_twin(self, channel: Channel) -> None:
        """Send on a twin socket from now on. Commands that the client sends there are dropped."""
        self.channel, self.twin, self._layout = channel, True, Layout.RATIFIED

    def renumber(self) -> None:
        """Begin with another number: a late reply to the process before is not to be taken for an answer."""
        self._next_id = random.getrandbits(16)

    def pop(self) -> Message:
        """Take the oldest kept command. The caller owns its fds."""
        message = self.kept.popleft()
        self._count(message, -1)
        return message

    def read(self, address: int, count: int, most: int) -> bytes:
        """Read ``count`` bytes of guest memory by DMA_READ, in messages of at most ``most`` bytes.

        Raises Stalemate, TimedOut, RemoteError if the client refuses, VfioUserError (ENOTSUP) for QEMU's old layout.
        """
        data = bytearray()
        self._sought = Command.DMA_READ
        if self._layout is not Layout.RATIFIED:
            self._find_layout(address)
        access, head = self._access, self._access.LAYOUT.size
        for request in _pieces(access, address, count, min(most, LARGEST_READ)):
            reply = self._ask(Command.DMA_READ, [request.pack()])
            if access.unpack(reply, "DMA_READ reply") != request or len(reply) != head + request.count:
                raise ProtocolError(f"DMA_READ reply: not the {request.count} bytes at {request.address:#x} asked for")
            data += reply[head:]
        return bytes(data)

    def write(self, address: int, data: memoryview, most: int) -> None:
        """Write guest memory by DMA_WRITE, at most ``most`` bytes a message. Raises as :meth:`read` does."""
        self._sought = Command.DMA_WRITE
        if self._layout is not Layout.RATIFIED:
            self._find_layout(address)
        for request in _pieces(self._access, address, len(data), most):
            start = request.address - address
            reply = self._ask(Command.DMA_WRITE, [request.pack(), data[start : start + request.count]])
            if not request.acknowledged_by(reply):
                raise ProtocolError(f"DMA_WRITE reply: not for the {request.count} bytes at {request.address:#x} sent")

    def close(self) -> None:
        """Drop the kept commands, and close their fds."""
        while self.kept:
            close_fds(self.pop().fds)

    def _find_layout(self, address: int) -> None:
        """Find the client's layout with a harmless write of 0 bytes. Raises VfioUserError (ENOTSUP) for the old layout.

        In QEMU 10.1 to 10.2.2 the count has 32 bits, so our data would arrive shifted by four bytes. These versions
        answer DMA_WRITE with a bare header, newer ones do not. An error reply leaves the layout unknown.
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
        """Send a command to the client, wait, and return the reply's payload."""
        if self._deaf and self.answering is not None:
            raise Stalemate(self._sought.name, command_name(self.answering))
        if not self.twin:
            self.channel.keep()
        self._next_id = (self._next_id + 1) & 0xFFFF
        self.channel.send(self._next_id, command, 0, 0, parts)
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
            waited_for = not self.twin and (self.answering is not None or self._waited_for > 0)
            try:
                message = self.channel.receive_by(patience if waited_for else deadline)
            except TimedOut:
                if not waited_for or patience == deadline:
                    raise
                self._deaf = True
                self._answer_first()
                continue
            is_reply = message.flags & 0xF == MessageFlags.REPLY
            if not is_reply and not self.twin:
                self._keep(message)
                continue
            close_fds(message.fds)
            if self.twin:
                self.channel.done()
            if is_reply and message.id == number and message.command == command:
                if message.flags & MessageFlags.ERROR:
                    raise RemoteError(command.name, message.error)
                return message.payload
            if time.monotonic() >= deadline:
                raise TimedOut(f"the peer sends all kinds of things, but no reply to {command.name}")

    def _answer_first(self) -> None:
        """Answer the kept commands that the client waits for. Raises Stalemate if one must wait for the device code."""
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


def _pieces(access: type[DmaAccess], address: int, count: int, most: int) -> list[DmaAccess]:
    return [access(address + at, min(most, count - at)) for at in range(0, count, most)]
