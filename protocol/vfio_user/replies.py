"""How a client reads the reply to a command."""

from __future__ import annotations

from vfio_user.constants import Command, MessageFlags
from vfio_user.errors import ProtocolError, RemoteError
from vfio_user.message import Message, close_fds


def accepted(message: Message, command: Command, reply_fds: list[int] | None) -> bytes:
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
