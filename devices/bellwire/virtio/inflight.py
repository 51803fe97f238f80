"""The journal of a virtqueue: which buffers the device has taken and not returned. It lies in the device's state.

A process may be killed at any point. Its successor must do again what the driver still waits for, and return each
buffer once. The rings alone do not tell: once a buffer has been returned, the driver may write over the places of those
that are still out. vhost-user's back ends keep a table of descriptors for that (its in-flight tracking). Here it costs
less, since most often a hook returns all that it has taken, all at once:

* While nothing has been returned since the device last held no buffer, the rings still show all that it has taken.
* Before a return leaves other buffers out, what was taken is copied into a log (*takes*), and the ids that are returned
  into another (*returns*). What is out is the one without the other. A full log is written anew, into the other of two
  windows.
* A return is published by one store to the ring. So a successor sees there whether it has happened.

One word says what the logs hold. It is stored at once, so it is never torn. Positions are those of the ring; a packed
ring's have the wrap counter in bit 15.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

HEADER = 16
SLOT = 16
"""Bytes of a slot in the log: a packed ring's descriptor. A split ring's head takes less."""
MOST_SLOTS = 1 << 13
_ID = 2
LOGGED, _WINDOW, FROM = 16, 31, 32
"""Bits of the word: how much is logged, in which window, and the position before what is logged."""


class Out(NamedTuple):
    """A buffer that is out: its id, the slots that it takes, and what the log has of them."""

    id: int
    span: int
    slots: bytes


class Ring(Protocol):
    """What a journal asks of a ring."""

    slot: int
    """Bytes of a slot in the log."""

    def log(self, place: memoryview, count: int, end: int) -> None:
        """Copy the ``count`` slots before position ``end`` to ``place``."""

    def parse(self, slots: bytes | bytearray) -> list[Out]:
        """The buffers in what the log has. A GuestError if the driver has made them impossible."""

    def move(self, position: int, count: int) -> int:
        """The position ``count`` slots on, or back."""

    def has_returned(self, position: int) -> bool:
        """Whether a buffer has been published at ``position``."""

    def unlogged(self, start: int, out: int) -> tuple[int, int]:
        """Nothing is logged, and ``out`` slots from ``start`` were out: how many still are, and the position behind."""

    @property
    def taken_to(self) -> int:
        """The position of the next buffer to take."""


def size_of(slots: int) -> int:
    """The bytes of the journal of a queue with ``slots`` slots."""
    return HEADER + 2 * 2 * slots * (SLOT + _ID)


class Inflight:
    """The journal of one queue of up to ``slots`` slots, in ``state``: ``size_of(slots)`` bytes."""

    def __init__(self, state: memoryview, slots: int) -> None:
        room = self._room = 2 * slots
        self.words = state[:HEADER].cast("Q")
        takes, both = room * SLOT, room * (SLOT + _ID)
        starts = HEADER, HEADER + both
        self._takes = [state[start : start + takes] for start in starts]
        self.first_takes = self._takes[0]
        self._returns = [state[start + takes : start + both].cast("H") for start in starts]
        self.forget()

    def forget(self) -> None:
        """The state is another one now: take over what it says. :meth:`recover` or :meth:`settle` comes next."""
        word = self.words[0]
        self._returned = word & 0xFFFF
        self.logged = word >> LOGGED & 0x7FFF
        """Slots in the log."""
        self._window = word >> _WINDOW & 1
        self.held = 0
        """Slots in the log whose buffers are out."""

    @property
    def is_possible(self) -> bool:
        """Whether a restored state can be that of a journal."""
        self.forget()
        return max(self.logged, self._returned, self.words[1]) <= self._room

    def settle(self, position: int) -> None:
        """Nothing is out; the next buffer is taken at ``position``. A ring stores that itself if nothing is logged."""
        if self.logged:
            if self._returned:
                self.words[1] = self._returned = 0
            self.logged = self._window = self.held = 0
        self.words[0] = position << FROM

    def note(self, ring: Ring, end: int, out: int) -> None:
        """Log all that is out: ``out`` slots before position ``end``."""
        fresh, slot = out - self.held, ring.slot
        if self.logged + fresh > self._room:
            self._write_anew(ring, self._outstanding(ring, self._returned), ring.move(end, -fresh))
        if fresh:
            start = self.logged * slot
            ring.log(self._takes[self._window][start : start + fresh * slot], fresh, end)
            position = None if self.logged else ring.move(end, -fresh)
            self.logged += fresh
            self.held = out
            self._store(position)

    def prepare(self, ring: Ring, end: int, out: int, ids: Sequence[int]) -> None:
        """:meth:`note`, and note the ids of the buffers that are about to be returned, while others stay out."""
        self.note(ring, end, out)
        total = self._returned + len(ids)
        if total > self._room:
            self._write_anew(ring, self._outstanding(ring, self._returned), end)
            total = len(ids)
        self._returns[self._window][self._returned : total] = array("H", ids)
        self.words[1] = total

    def commit(self, count: int, out: int) -> None:
        """``count`` buffers, prepared before, have been published. ``out`` slots are left."""
        self._returned += count
        self.held = out
        self._store()

    def shrink(self, out: int) -> None:
        """Only ``out`` slots are out any more: the buffers that were taken last are back."""
        if out < self.held:
            self.logged -= self.held - out
            self.held = out
            self._store()

    def recover(self, ring: Ring, out: int) -> tuple[list[Out], int]:
        """What is out after a process has ended at any point, in the order in which it was taken; and the position of
        the next buffer to take.

        ``out`` is the number of slots that are out, as the state has it. A GuestError if the driver has made that
        impossible.
        """
        self.forget()
        start, prepared = self.words[0] >> FROM & 0xFFFF, self.words[1]
        left: list[Out] = []
        if not self.logged:
            fresh, end = ring.unlogged(start, out)
            left = self._recent(ring, fresh, end)
            self._write_anew(ring, left, end)
            return left, end
        left = self._outstanding(ring, self._returned)
        held = sum(each.span for each in left)
        end = ring.move(start, self.logged)
        if ring.has_returned(ring.move(end, -held)):
            if prepared > self._returned:
                left = self._outstanding(ring, prepared)
            else:  # all that was out
                left, end = [], ring.taken_to
        elif out > held:
            end = ring.move(end, out - held)
            left += self._recent(ring, out - held, end)
        else:  # what was taken last was put back
            while left and held > out:
                last = left.pop()
                held -= last.span
                end = ring.move(end, -last.span)
        self._write_anew(ring, left, end)
        return left, end

    def _recent(self, ring: Ring, count: int, end: int) -> list[Out]:
        """The buffers in the ``count`` slots before position ``end``, which are not logged."""
        recent = bytearray(count * ring.slot)
        ring.log(memoryview(recent), count, end)
        return ring.parse(recent)

    def _outstanding(self, ring: Ring, returned: int) -> list[Out]:
        """What the log has taken, without the first ``returned`` buffers that it has returned."""
        window = self._window
        back = Counter(self._returns[window][:returned])
        left = []
        for each in ring.parse(bytes(self._takes[window][: self.logged * ring.slot])):
            if back[each.id]:
                back[each.id] -= 1
            else:
                left.append(each)
        return left

    def _write_anew(self, ring: Ring, left: Sequence[Out], end: int) -> None:
        """Log what is out, and nothing else, in the other window. ``end`` is the position behind it."""
        slots = b"".join([each.slots for each in left])
        other = 1 - self._window if slots else 0
        self._takes[other][: len(slots)] = slots
        self.words[1] = 0
        self._window, self._returned = other, 0
        self.logged = self.held = len(slots) // ring.slot
        self._store(ring.move(end, -self.logged))

    def _store(self, position: int | None = None) -> None:
        start = self.words[0] >> FROM if position is None else position
        self.words[0] = self._returned | self.logged << LOGGED | self._window << _WINDOW | start << FROM
