"""Shadow doorbells (§5.7, §7.13): tails and heads in guest memory, and event indices that ask the guest to ring.

Both buffers have the layout of the doorbell registers. The guest stores a new tail or head in the first buffer. It
rings only if the new value passes the event index, which the controller has stored in the second buffer.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING

from bellwire.bundled.nvme.prp import PAGE

if TYPE_CHECKING:
    from bellwire.model.dma import Dma

_WORD = 4
_fence = threading.Lock()


class ShadowState(ctypes.Structure):
    """The guest addresses of the two buffers, one page each; 0 if the guest uses the registers."""

    _fields_ = [("doorbells", ctypes.c_uint64), ("events", ctypes.c_uint64)]
    doorbells: int
    events: int


class Shadow:
    """The shadow doorbells of I/O queues. Its methods may raise a GuestError."""

    def __init__(self, state: ShadowState, dma: Dma) -> None:
        self._state = state
        self._dma = dma
        self._words: memoryview[int] | None = None
        self._changes = -1

    @property
    def active(self) -> bool:
        """Whether the guest has set up shadow doorbells."""
        return self._state.doorbells != 0

    def configure(self, doorbells: int, events: int) -> None:
        """Use the pages at these addresses from now on."""
        self._state.doorbells, self._state.events = doorbells, events
        self._changes = -1

    def tail(self, qid: int) -> int:
        """The tail of submission queue ``qid`` that the guest has stored."""
        return self._stored(2 * qid)

    def head(self, qid: int) -> int:
        """The head of completion queue ``qid`` that the guest has stored."""
        return self._stored(2 * qid + 1)

    def wake_at_tail(self, qid: int, tail: int) -> int:
        """Ask the guest to ring when its tail passes ``tail``. Returns the tail now: it may have moved already."""
        return self._wake_at(2 * qid, tail)

    def wake_at_head(self, qid: int, head: int) -> int:
        """Ask the guest to ring when its head passes ``head``. Returns the head now."""
        return self._wake_at(2 * qid + 1, head)

    def _wake_at(self, place: int, value: int) -> int:
        self._dma.write(self._state.events + _WORD * place, value.to_bytes(_WORD, "little"))
        _full_barrier()
        return self._stored(place)

    def _stored(self, place: int) -> int:
        if self._changes != self._dma.changes:
            self._look()
        words = self._words
        if words is None:
            return int.from_bytes(self._dma.read(self._state.doorbells + _WORD * place, _WORD), "little")
        return words[place]

    def _look(self) -> None:
        """Look for the page of doorbells in memory that the client shares. If it shares none, there is no view."""
        at = self._state.doorbells
        shared = self._dma.shared_map(at)
        self._words = None
        if shared is not None and at + PAGE <= shared.end:
            self._words = shared.view[at - shared.start : at - shared.start + PAGE].cast("I")
        self._changes = self._dma.changes


def _full_barrier() -> None:
    """Make the store visible before the next load: x86 may reorder the two. Taking a lock is a locked instruction."""
    with _fence:
        pass
