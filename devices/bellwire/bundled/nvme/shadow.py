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
        self._wanted: memoryview[int] | None = None
        self._changes = -1
        self.active = False
        """Whether the guest has set up shadow doorbells."""

    def configure(self, doorbells: int, events: int) -> None:
        """Use the pages at these addresses from now on; with zeros, use the registers."""
        self._state.doorbells, self._state.events = doorbells, events
        self.restored()

    def restored(self) -> None:
        """The state has been restored."""
        self.active = self._state.doorbells != 0
        self._changes = -1

    def tail(self, qid: int) -> int:
        """The tail of submission queue ``qid`` that the guest has stored."""
        words = self._words if self._changes == self._dma.changes else self._look()
        return self._read(2 * qid) if words is None else words[2 * qid]

    def head(self, qid: int) -> int:
        """The head of completion queue ``qid`` that the guest has stored."""
        words = self._words if self._changes == self._dma.changes else self._look()
        return self._read(2 * qid + 1) if words is None else words[2 * qid + 1]

    def wake_at_tail(self, qid: int, tail: int) -> int:
        """Ask the guest to ring when its tail passes ``tail``. Returns the tail now: it may have moved already."""
        return self._wake_at(2 * qid, tail)

    def wake_at_head(self, qid: int, head: int) -> int:
        """Ask the guest to ring when its head passes ``head``. Returns the head now."""
        return self._wake_at(2 * qid + 1, head)

    def _wake_at(self, place: int, value: int) -> int:
        words = self._words if self._changes == self._dma.changes else self._look()
        if self._wanted is None:
            self._dma.write(self._state.events + _WORD * place, value.to_bytes(_WORD, "little"))
        else:
            self._wanted[place] = value
        with _fence:  # a locked instruction: x86 may let the next load overtake that store
            pass
        return self._read(place) if words is None else words[place]

    def _read(self, place: int) -> int:
        return int.from_bytes(self._dma.read(self._state.doorbells + _WORD * place, _WORD), "little")

    def _look(self) -> memoryview[int] | None:
        """Look for both pages in memory that the client shares. If it shares one not, there is no view of it."""
        self._words = self._page(self._state.doorbells, write=False)
        self._wanted = self._page(self._state.events, write=True)
        self._changes = self._dma.changes
        return self._words

    def _page(self, at: int, *, write: bool) -> memoryview[int] | None:
        shared = self._dma.shared_map(at, write=write)
        if shared is None or at + PAGE > shared.end:
            return None
        return shared.view[at - shared.start : at - shared.start + PAGE].cast("I")
