"""Shadow doorbells (§5.7, §7.13): tails and heads in guest memory, and when the guest is to ring all the same.

Both buffers are laid out as the doorbell registers are. The guest stores a new tail or head in the one, and rings
only if that moves it past the value that we have stored in the other, the event index.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bellwire.model.dma import Dma

_fence = threading.Lock()


class ShadowState(ctypes.Structure):
    """Guest addresses of the two buffers, each a page; 0: the guest rings the registers."""

    _fields_ = [("doorbells", ctypes.c_uint64), ("events", ctypes.c_uint64)]
    doorbells: int
    events: int


class Shadow:
    """The doorbells of I/O queues in guest memory. GuestErrors of it are the caller's to take."""

    def __init__(self, state: ShadowState, dma: Dma) -> None:
        self._state = state
        self._dma = dma

    @property
    def active(self) -> bool:
        """Whether the guest has set it up."""
        return self._state.doorbells != 0

    def configure(self, doorbells: int, events: int) -> None:
        """Use the pages at these addresses from now on."""
        self._state.doorbells, self._state.events = doorbells, events

    def tail(self, qid: int) -> int:
        """The tail of submission queue ``qid`` as the guest has stored it last."""
        return int.from_bytes(self._dma.read(self._state.doorbells + 8 * qid, 4), "little")

    def head(self, qid: int) -> int:
        """The head of completion queue ``qid`` as the guest has stored it last."""
        return int.from_bytes(self._dma.read(self._state.doorbells + 8 * qid + 4, 4), "little")

    def wake_at_tail(self, qid: int, tail: int) -> int:
        """Have the guest ring when it moves past ``tail``; returns the tail now, since it may have moved already."""
        self._dma.write(self._state.events + 8 * qid, tail.to_bytes(4, "little"))
        _full_barrier()
        return self.tail(qid)

    def wake_at_head(self, qid: int, head: int) -> int:
        """The same for a completion queue's head."""
        self._dma.write(self._state.events + 8 * qid + 4, head.to_bytes(4, "little"))
        _full_barrier()
        return self.head(qid)


def _full_barrier() -> None:
    """Our store must be seen before we load (x86 lets a load overtake it); taking a lock is a locked instruction."""
    with _fence:
        pass
