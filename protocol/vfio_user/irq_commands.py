"""DEVICE_SET_IRQS: how a server answers it."""

from __future__ import annotations

from vfio_user.backend import Backend
from vfio_user.getters import DONE, Reply
from vfio_user.irqs import IrqTable, SetIrqs
from vfio_user.message import Message


def answer_set_irqs(message: Message, irqs: IrqTable, backend: Backend) -> Reply:
    """Set interrupts up. The descriptors that are kept are taken out of the message. Raises what ``apply`` raises."""
    request = SetIrqs.unpack(message.payload)
    irqs.apply(request, message.fds)
    backend.irqs_changed(request.index)
    return DONE
