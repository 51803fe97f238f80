"""Guest memory by message: how a client answers a server's DMA_READ and DMA_WRITE."""

from __future__ import annotations

import errno
from typing import Protocol

from vfio_user.constants import Command
from vfio_user.errors import ProtocolError, VfioUserError
from vfio_user.message import Message
from vfio_user.transfer import DmaAccess


class Memory(Protocol):
    """Guest memory that a client reads and writes for a server, which has no file descriptor of it."""

    def read(self, address: int, count: int) -> bytes:
        """``count`` bytes at ``address``. Raises VfioUserError if there is no such memory."""

    def write(self, address: int, data: bytes) -> None:
        """Write ``data`` at ``address``. Raises VfioUserError if there is no such memory."""


def answer(message: Message, memory: Memory | None, most: int, layout: type[DmaAccess] = DmaAccess) -> bytes:
    """Carry out a server's DMA_READ or DMA_WRITE of at most ``most`` bytes, and return the reply's payload.

    Raises VfioUserError if the command must be refused; its errno is for the error reply.
    """
    name, payload = message.name, message.payload
    if message.command not in (Command.DMA_READ, Command.DMA_WRITE):
        raise ProtocolError(f"{name}: not a command that a server can send")
    access = layout.unpack(payload, name)
    head = access.pack()
    if memory is None:
        raise VfioUserError(f"{name}: this client has no memory to offer", errno.EFAULT)
    if access.count > most:
        raise ProtocolError(f"{name}: count {access.count}, max_data_xfer_size is {most}")
    data = payload[len(head) :]
    if message.command == Command.DMA_WRITE:
        if len(data) != access.count:
            raise ProtocolError(f"{name}: count {access.count}, but {len(data)} bytes of data came")
        memory.write(access.address, bytes(data))
        return access.acknowledgement()
    found = memory.read(access.address, access.count)
    if len(found) != access.count:
        raise VfioUserError(f"{name}: {len(found)} bytes of memory found for {access.count}", errno.EFAULT)
    return head + found
