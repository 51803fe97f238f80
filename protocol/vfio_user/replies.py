"""How a client reads the reply to its command, and how it replies to a server's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vfio_user.channel import Channel
from vfio_user.constants import Command, MessageFlags
from vfio_user.dialects import Dialect, DraftCommand
from vfio_user.dma_answers import Memory, answer
from vfio_user.errors import ProtocolError, RemoteError, VfioUserError
from vfio_user.message import Message, close_fds
from vfio_user.vm_interrupts import vector_of


def accepted(message: Message, command: Command | DraftCommand, reply_fds: list[int] | None) -> bytes:
    """The payload of the reply to ``command``. Its descriptors go to ``reply_fds``, else they are closed.

    Raises RemoteError if the server has refused, ProtocolError for a reply to another command.
    """
    try:
        if message.command != command:
            raise ProtocolError(f"{command.name} was answered by a reply to {message.name}")
        if message.flags & MessageFlags.ERROR:
            raise RemoteError(command.name, message.error)
        if reply_fds is not None:
            reply_fds += message.fds
            message.fds.clear()
        return bytes(message.payload)
    finally:
        close_fds(message.fds)


class Answers:
    """Answers a server's commands: DMA_READ and DMA_WRITE from ``memory``, VM_INTERRUPT by ``interrupt``.

    ``most`` is the most bytes that a DMA command may move.
    """

    def __init__(self, memory: Memory | None, dialect: Dialect, interrupt: Callable[[int], None] | None) -> None:
        self.memory = memory
        self.most = 0
        self._dialect = dialect
        self._interrupt = interrupt

    def serve(self, message: Message, channel: Channel, *, listening: bool = True) -> None:
        """Answer a command over ``channel``; drop a reply that nobody waits for, and all descriptors."""
        close_fds(message.fds)
        if message.is_reply:
            return
        flags, error, parts = MessageFlags.REPLY, 0, self._answer(message)
        if isinstance(parts, VfioUserError):
            flags, error, parts = MessageFlags.REPLY | MessageFlags.ERROR, parts.errno, ()
        if not message.flags & MessageFlags.NO_REPLY:
            channel.send(message.id, message.command, flags, error, parts, listening=listening)

    def _answer(self, message: Message) -> Sequence[bytes] | VfioUserError:
        try:
            if message.command != self._dialect.vm_interrupt:
                return [answer(message, self.memory, self.most, self._dialect.dma)]
            vector = vector_of(message)
        except VfioUserError as refusal:
            return refusal
        if self._interrupt is not None:
            self._interrupt(vector)
        return ()
