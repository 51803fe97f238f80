"""Commands that a process had received, or begun, when it died: what its successor may do with them."""

from __future__ import annotations

import errno
from typing import Protocol

from vfio_user.backend import Backend
from vfio_user.channel import Channel
from vfio_user.constants import Command, SetIrqsFlags
from vfio_user.dma import DmaMap, DmaTable, DmaUnmap
from vfio_user.errors import VfioUserError
from vfio_user.irqs import SetIrqs
from vfio_user.journal import Journal
from vfio_user.ledger import Estate
from vfio_user.message import Message
from vfio_user.version import Capabilities

BEGUN = "begun"
"""The ledger's key of the descriptors that came with the command in work."""
ACCESSES = frozenset((Command.REGION_READ, Command.REGION_WRITE, Command.REGION_WRITE_MULTI))
"""The commands that run hooks of the device. A reset does, too, and may always be done again."""


class SetUp(Protocol):
    """What a client has set up, of a session."""

    client: Capabilities | None
    dma: DmaTable


def begun(journal: Journal | None, channel: Channel, estate: Estate) -> tuple[Message | None, int]:
    """Let ``channel`` begin where that of another process has ended, as ``journal`` has it.

    Returns the message that was begun, if there is one, and how many bytes were received.
    """
    if journal is None:
        return None, 0
    found = journal.found()
    channel.resume(found)
    message = channel.receive() if found.busy else None
    if message is not None and estate.note(BEGUN) == {"id": message.id, "command": message.command}:
        message.fds.extend(estate.take(BEGUN))
    return message, found.end - found.start


def died(message: Message) -> VfioUserError:
    """The error by which such a command is answered: EIO."""
    return VfioUserError(f"{message.name}: the process that had received it has died", errno.EIO)


def lacks_fds(message: Message) -> bool:
    """Whether a command may have come with descriptors, which were lost with the process."""
    if message.fds:
        return False
    if message.command == Command.DMA_MAP:
        return True
    if message.command != Command.DEVICE_SET_IRQS:
        return False
    request = SetIrqs.unpack(message.payload)
    return bool(request.flags & SetIrqsFlags.DATA_EVENTFD) and request.count > 0


def prepare(message: Message, session: SetUp, backend: Backend) -> None:
    """Undo what the process had done of a command, where it could not be done again otherwise."""
    if message.command == Command.VERSION:
        session.client = None
    elif message.command == Command.DMA_MAP:
        request = DmaMap.unpack(message.payload)
        undone = DmaUnmap(request.address, request.size)
        backend.before_unmap(undone)
        session.dma.unmap(session.dma.inside(undone))
