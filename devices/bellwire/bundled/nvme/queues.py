"""Submission and completion queues: rings in guest memory (§4.1).

What is known of a queue lies in the device's state, as a structure there, so that a snapshot has it.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, TypeVar

from bellwire.bundled.nvme.command import COMMAND_SIZE, COMPLETION_SIZE
from bellwire.bundled.nvme.registers import ENTRIES, QUEUES

if TYPE_CHECKING:
    from bellwire.model.dma import Dma

BATCH = 16
"""Entries that one copy moves and one interrupt reports. The host handles them while the device works on the next."""


class SubmissionQueue(ctypes.Structure):
    """A ring of commands (§4.1.1). It exists while ``size`` is not 0; it is empty while ``head`` is ``tail``."""

    _fields_ = [
        ("base", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("head", ctypes.c_uint32),
        ("tail", ctypes.c_uint32),
        ("cqid", ctypes.c_uint32),
        ("running", ctypes.c_uint32),
        ("deleter", ctypes.c_uint32),
    ]
    base: int
    size: int
    head: int
    tail: int
    cqid: int
    running: int
    """The number of commands that threads execute."""
    deleter: int
    """The id of the command that deletes the queue, plus one. It waits for :attr:`running`. 0: there is none."""
    qid: int

    @property
    def is_possible(self) -> bool:
        """Whether a restored state can be that of a queue, apart from its completion queue."""
        inside = max(self.head, self.tail) < self.size
        return not self.size or (2 <= self.size <= ENTRIES and inside and self.deleter <= 1 << 16)

    def create(self, base: int, size: int, cqid: int) -> None:
        """Create the queue, empty."""
        self.base, self.size, self.cqid = base, size, cqid
        self.head = self.tail = self.running = self.deleter = 0

    def fetch(self, dma: Dma, most: int) -> bytes:
        """Take at most ``most`` commands of 64 bytes, up to where the ring wraps; GuestError if it cannot."""
        head, tail = self.head, self.tail
        count = min((tail if tail >= head else self.size) - head, most)
        if count <= 0:
            return b""
        block = dma.read(self.base + head * COMMAND_SIZE, count * COMMAND_SIZE)
        self.head = (head + count) % self.size
        return block

    def give_back(self, count: int) -> None:
        """Put the last ``count`` fetched commands back."""
        self.head = (self.head - count) % self.size


Completion = tuple[int, SubmissionQueue, int, int]
"""A completion: the result, the submission queue, the command id and the status."""


class CompletionQueue(ctypes.Structure):
    """A ring of completions (§4.1.2). It exists while ``size`` is not 0."""

    _fields_ = [
        ("base", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("head", ctypes.c_uint32),
        ("tail", ctypes.c_uint32),
        ("phase", ctypes.c_uint32),
        ("vector", ctypes.c_uint32),
        ("interrupts", ctypes.c_uint32),
        ("running", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]
    base: int
    size: int
    head: int
    tail: int
    phase: int
    vector: int
    interrupts: int
    running: int
    """The number of commands under way that need an entry here."""
    qid: int

    @property
    def is_possible(self) -> bool:
        """Whether a restored state can be that of a queue."""
        inside = max(self.head, self.tail) < self.size and self.phase <= 1 and self.vector <= QUEUES
        return not self.size or (2 <= self.size <= ENTRIES and inside)

    def create(self, base: int, size: int, vector: int, interrupts: bool) -> None:
        """Create the queue, empty. The phase of its first pass is 1 (§4.6)."""
        self.base, self.size, self.vector, self.interrupts = base, size, vector, interrupts
        self.head = self.tail = self.running = 0
        self.phase = 1

    @property
    def room(self) -> int:
        """Entries that are free and that no command under way will need; one always stays free (§4.1.2)."""
        return (self.head - self.tail - 1) % self.size - self.running

    def post(self, dma: Dma, completions: list[Completion]) -> None:
        """Write ``completions``, for which there is room. GuestError if it cannot."""
        self._write(dma, [_origin(sq) | result | cid << 96 | status << 113 for result, sq, cid, status in completions])

    def post_successes(self, dma: Dma, sq: SubmissionQueue, cids: list[int]) -> None:
        """Write completions of commands of ``sq`` that have succeeded, with no result; otherwise as :meth:`post`."""
        origin = _origin(sq)
        self._write(dma, [origin | cid << 96 for cid in cids])

    def _write(self, dma: Dma, entries: list[int]) -> None:
        """Write ``entries``, as numbers of 128 bits that lack the phase (§4.6)."""
        at = 0
        while at < len(entries):
            tail, phase = self.tail, self.phase << 112
            some = entries[at : at + min(self.size - tail, BATCH)]
            batch = b"".join([(entry | phase).to_bytes(COMPLETION_SIZE, "little") for entry in some])
            dma.write(self.base + tail * COMPLETION_SIZE, batch)
            at += len(some)
            tail += len(some)
            if tail == self.size:
                tail = 0
                self.phase ^= 1
            self.tail = tail


def _origin(sq: SubmissionQueue) -> int:
    """What all completions of ``sq`` have in common now: its head and its number."""
    return (sq.head | sq.qid << 16) << 64


Queue = TypeVar("Queue", SubmissionQueue, CompletionQueue)


def queues_in(state: memoryview, kind: type[Queue]) -> list[Queue]:
    """The queues that lie in ``state``, by number."""
    size = ctypes.sizeof(kind)
    queues = [kind.from_buffer(state, at) for at in range(0, len(state), size)]
    for qid, queue in enumerate(queues):
        queue.qid = qid
    return queues
