"""VM_INTERRUPT of the draft of January 2021: a server signals an interrupt by message. Its payload is the vector."""

from __future__ import annotations

from collections.abc import Callable

from vfio_user.channel import Channel
from vfio_user.constants import MessageFlags
from vfio_user.dialects import Dialect
from vfio_user.errors import ProtocolError, VfioUserError
from vfio_user.fields import Fields
from vfio_user.message import Message

VECTOR = Fields("<I", "sub-index")
_NO_REPLY = int(MessageFlags.NO_REPLY)


def sender(dialect: Dialect, channel: Callable[[], Channel | None]) -> Callable[[int], bool] | None:
    """What sends VM_INTERRUPT with a vector over ``channel()``; None if ``dialect`` has no such command.

    It returns whether the message was sent: not without a channel, as long as the client has not introduced itself. If
    the message cannot be sent, the connection ends.
    """
    number = dialect.vm_interrupt
    if number is None:
        return None

    def send(vector: int) -> bool:
        way = channel()
        if way is None:
            return False
        way.keep()  # device code may hold the payload of the command in work
        try:
            way.send(0, number, _NO_REPLY, 0, [VECTOR.pack(vector)])
        except VfioUserError:
            way.break_off()
            return False
        return True

    return send


def vector_of(message: Message) -> int:
    """The vector in a VM_INTERRUPT. Raises ProtocolError for a payload of another size."""
    if len(message.payload) != VECTOR.size:
        raise ProtocolError(f"VM_INTERRUPT: {len(message.payload)} bytes, expected {VECTOR.size}")
    vector: int = VECTOR.unpack(message.payload)[0]
    return vector
