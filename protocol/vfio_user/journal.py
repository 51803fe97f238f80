"""The journal of a connection: received bytes, and how far they are handled, in memory that outlives the process.

A process may be killed between any two instructions. Its successor must then find every message that was received and
is not handled, and must know whether the first of them had been begun. Three habits of the channel make that so:

* Bytes are received into the journal's buffer itself. Behind the received bytes it holds zeros, and no message begins
  with a size of zero. So the successor finds the end of the received messages, even if the process died right after the
  receive, before it could note a number. Only the end of an incomplete message has to be noted.
* The channel notes where a message ends before it gives the message out (BUSY), and where the messages end that are
  done with (HEAD). If BUSY is behind HEAD, the message between them was begun.
* A message is done with right before its reply is sent. A reply is never sent twice: the client could not understand
  the stream after that. So one gap is left, of less than a microsecond: a process that is killed just before the
  kernel takes the reply has sent none, and nobody will.
"""

from __future__ import annotations

import mmap
import os
import struct
from typing import NamedTuple

from vfio_user.constants import HEADER_SIZE
from vfio_user.ledger import Estate, Kept, Ledger
from vfio_user.mapping import Mapping
from vfio_user.version import Capabilities

HEAD, TAIL, BUSY, GIVEN_UP, WAITS = range(5)
"""The marks: ends of what is done with, of an incomplete message, and of the message in work; whether it is not used
any more; and whether the process waits for its client. That one is for those who watch the process.
"""
MARKS = 32
"""The bytes of the marks, at the start of the file."""
_LATE, _IRQS = 64, 1088
LATE_READS = 32
"""Reads that may wait for a late reply in a journal. Further ones are lost with the process."""
READ_SIZE = 32
"""The bytes of a REGION_READ."""
_SIZE = struct.Struct("<4xI")  # of a message, in its header
_LEAD = mmap.PAGESIZE
SPARE = 4096  # bytes of a message beyond the largest transfer: its own structs
SHORT = 64
clear_marks = struct.Struct("16x").pack_into
clear_short = struct.Struct(f"{SHORT}x").pack_into
clear_read = struct.Struct("32x").pack_into  # a REGION_READ


def no_marks() -> memoryview:
    """Marks for a channel without a journal."""
    return memoryview(bytearray(MARKS)).cast("I")


def moved(marks: memoryview, kept: int) -> None:
    """Note that an incomplete message, of which ``kept`` bytes are there, was copied to the start of the buffer."""
    marks[BUSY] = 0
    marks.cast("B")[:8].cast("Q")[0] = kept << 32  # HEAD and TAIL in one store


class Found(NamedTuple):
    """What is in a journal: the messages from ``start`` to ``end``, the first of which was begun if ``busy``."""

    start: int
    end: int
    busy: bool


class Journal:
    """Room for two messages of ``largest`` bytes, in a memory file: a new one, or ``inherited``. It owns the file."""

    def __init__(self, largest: int, inherited: int | None = None) -> None:
        size = _LEAD + -(-2 * largest // mmap.PAGESIZE) * mmap.PAGESIZE
        self.fd = os.memfd_create("bellwire-journal", os.MFD_CLOEXEC) if inherited is None else inherited
        try:
            if inherited is None:
                os.ftruncate(self.fd, size)
            view = Mapping(self.fd, 0, size, write=True).view()
        except BaseException:
            os.close(self.fd)
            raise
        self.marks = view[:MARKS].cast("I")
        self.marks[WAITS] = 0
        self.late = view[_LATE:_IRQS]
        """Reads that wait for a late reply, READ_SIZE bytes each. An empty place has zeros."""
        self.irqs = view[_IRQS:_LEAD]
        """A byte for each interrupt: see :class:`vfio_user.irqs.IrqTable`."""
        self.buffer = view[_LEAD:]

    @classmethod
    def of(cls, limits: Capabilities, estate: Estate, ledger: Ledger, key: str = "journal") -> Journal:
        """The journal in ``estate``, or a new one, of which ``ledger`` is told."""
        inherited = estate.take(key)
        journal = cls(HEADER_SIZE + limits.max_data_xfer_size + SPARE, *inherited)
        if not inherited:
            ledger.keep(Kept(key, {}, (journal.fd,)))
        return journal

    def found(self) -> Found:
        """What the process before has left here."""
        if self.marks[GIVEN_UP]:
            clear_marks(self.marks, 0)
            self.buffer[:] = bytes(len(self.buffer))
            return Found(0, 0, busy=False)
        start, tail, busy = self.marks[HEAD], self.marks[TAIL], self.marks[BUSY]
        limit = len(self.buffer)
        start = min(start, limit)
        end = min(max(start, busy), limit)
        while limit - end >= HEADER_SIZE:
            size = max(_SIZE.unpack_from(self.buffer, end)[0], HEADER_SIZE)
            if end < tail < end + size:  # incomplete
                return Found(start, tail, busy > start)
            if not any(self.buffer[end : end + HEADER_SIZE]) or size > limit - end:
                break
            end += size
        return Found(start, end, busy > start)

    def close(self) -> None:
        """Close the file. The memory is freed with the last view."""
        os.close(self.fd)
