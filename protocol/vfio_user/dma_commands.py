"""DMA_MAP and DMA_UNMAP: how a server answers them."""

from __future__ import annotations

from vfio_user.backend import Backend
from vfio_user.dma import DmaMap, DmaTable, DmaUnmap
from vfio_user.errors import ProtocolError
from vfio_user.getters import DONE, Reply
from vfio_user.message import Message


def answer_map(message: Message, table: DmaTable, backend: Backend) -> Reply:
    """Map memory. The descriptor is taken out of the message. Raises VfioUserError as :meth:`DmaTable.map` does."""
    request = DmaMap.unpack(message.payload)
    if len(message.fds) > 1:
        raise ProtocolError(f"DMA_MAP: {len(message.fds)} fds, expected at most 1")
    table.map(request, message.fds.pop() if message.fds else None)
    backend.dma_changed(request)
    return DONE


def answer_unmap(message: Message, table: DmaTable, backend: Backend) -> Reply:
    """Unmap memory, once the device has stopped using it. Raises VfioUserError as :meth:`DmaTable.inside` does."""
    request = DmaUnmap.unpack(message.payload)
    ranges = table.inside(request)
    if ranges.start < ranges.stop:
        backend.before_unmap(request)
        table.unmap(ranges)
        backend.dma_changed(request)
    return Reply([request.pack()])
