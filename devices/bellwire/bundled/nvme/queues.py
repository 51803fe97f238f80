"""Submission and completion queues: rings in guest memory (§4.1).

What is known of a queue lies in the device's state, as a structure there, so that a snapshot has it.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, TypeVar

from bellwire.bundled.nvme.command import COMMAND_SIZE, COMPLETION, COMPLETION_SIZE
from bellwire.bundled.nvme.registers import ENTRIES, QUEUES

if TYPE_CHECKING:
    from bellwire.model.dma import Dma

NEWEST = 1 << 31
"""The phase, in the word that says up to where a completion queue is settled."""
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
    most: int = ENTRIES
    """The limit of :attr:`size`; the admin queue has another one."""
    batch: memoryview
    """The commands that are being executed, as they were fetched: the host may write over them in the ring soon."""
    word: memoryview
    """Their number, and from bit 32 on the head behind them; one u64, so that it is never torn. 0: there are none."""

    @property
    def is_possible(self) -> bool:
        """Whether a restored state can be that of a queue, apart from its completion queue."""
        inside = max(self.head, self.tail, self.word[0] >> 32) < self.size and self.word[0] & 0xFFFF_FFFF <= BATCH
        return not self.size or (2 <= self.size <= self.most and inside and self.deleter <= 1 << 16)

    def create(self, base: int, size: int, cqid: int) -> None:
        """Create the queue, empty."""
        self.base, self.cqid = base, cqid
        self.head = self.tail = self.running = self.deleter = self.word[0] = 0
        self.size = size

    def fetch(self, dma: Dma, most: int) -> bytes:
        """Take at most ``most`` commands of 64 bytes, up to where the ring wraps; GuestError if it cannot."""
        head, tail = self.head, self.tail
        count = min((tail if tail >= head else self.size) - head, most)
        if count <= 0:
            return b""
        block = dma.read(self.base + head * COMMAND_SIZE, count * COMMAND_SIZE)
        head = (head + count) % self.size
        self.batch[: len(block)] = block
        self.word[0] = count | head << 32
        self.head = head
        return block

    def give_back(self, count: int) -> None:
        """Put the last ``count`` fetched commands back."""
        head = (self.head - count) % self.size
        self.word[0] = (self.word[0] & 0xFFFF) - count | head << 32
        self.head = head

    def reopen(self) -> list[bytes]:
        """The commands that were being executed when the process died. The head is the one behind them."""
        count = self.word[0] & 0xFFFF
        if count:
            self.head = self.word[0] >> 32
            self.word[0] = 0
        return [bytes(self.batch[at : at + COMMAND_SIZE]) for at in range(0, count * COMMAND_SIZE, COMMAND_SIZE)]


_SUCCESSES = [struct.Struct("<" + "8xIHH" * count).pack for count in range(BATCH + 1)]
"""Packs completions without a result, by their number: SQ head and SQ id, command id, phase and status (§4.6)."""
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
        ("settled", ctypes.c_uint32),
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
    settled: int
    """Tail and phase up to which the commands of all completions are struck from journals."""
    qid: int
    most: int = ENTRIES

    @property
    def is_possible(self) -> bool:
        """Whether a restored state can be that of a queue."""
        inside = max(self.head, self.tail, self.settled & ~NEWEST) < self.size
        inside = inside and self.phase <= 1 and self.vector <= QUEUES
        return not self.size or (2 <= self.size <= self.most and inside)

    def create(self, base: int, size: int, vector: int, interrupts: bool) -> None:
        """Create the queue, empty. The phase of its first pass is 1 (§4.6)."""
        self.base, self.vector, self.interrupts = base, vector, interrupts
        self.head = self.tail = self.running = 0
        self.phase = 1
        self.settle()
        self.size = size

    def settle(self) -> None:
        """The commands of all completions so far are struck from journals."""
        self.settled = self.tail | (NEWEST if self.phase else 0)

    def find_end(self, dma: Dma) -> list[tuple[int, int]]:
        """After a process has died, find the end in the ring. Returns queue and id of what was completed last."""
        found = []
        at, phase = self.settled & ~NEWEST, self.settled >> 31
        for _ in range(self.size - 1):
            _, _, _, sqid, cid, status = COMPLETION.unpack(dma.read(self.base + at * COMPLETION_SIZE, COMPLETION_SIZE))
            if status & 1 != phase:
                break
            found.append((sqid, cid))
            at += 1
            if at == self.size:
                at, phase = 0, phase ^ 1
        self.tail, self.phase = at, phase
        return found

    @property
    def room(self) -> int:
        """Entries that are free and that no command under way will need; one always stays free (§4.1.2)."""
        return (self.head - self.tail - 1) % self.size - self.running

    def post(self, dma: Dma, completions: list[Completion]) -> None:
        """Write ``completions``, for which there is room. GuestError if it cannot."""
        self._write(
            dma,
            [
                result | (sq.head | sq.qid << 16 | cid << 32 | status << 49) << 64
                for result, sq, cid, status in completions
            ],
        )

    def post_successes(self, dma: Dma, sq: SubmissionQueue, cids: list[int]) -> None:
        """Write completions of commands of ``sq`` that have succeeded, with no result; otherwise as :meth:`post`."""
        tail, count = self.tail, len(cids)
        behind, size = tail + count, self.size
        if count > BATCH or behind > size:
            self.post(dma, [(0, sq, cid, 0) for cid in cids])
            return
        fields = [sq.head | sq.qid << 16, 0, self.phase] * count
        fields[1::3] = cids
        dma.write(self.base + tail * COMPLETION_SIZE, _SUCCESSES[count](*fields))
        if behind == size:
            behind = 0
            self.phase ^= 1
        self.tail = behind

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


BATCH_STATE = 8 + BATCH * COMMAND_SIZE
"""Bytes of a submission queue's batch in the device's state: the word, then the commands."""


def place_batches(queues: list[SubmissionQueue], state: memoryview) -> None:
    """Let the batches of ``queues`` lie in ``state``."""
    for number, queue in enumerate(queues):
        place = state[number * BATCH_STATE : (number + 1) * BATCH_STATE]
        queue.word, queue.batch = place[:8].cast("Q"), place[8:]


Queue = TypeVar("Queue", SubmissionQueue, CompletionQueue)


def queues_in(state: memoryview, kind: type[Queue]) -> list[Queue]:
    """The queues that lie in ``state``, by number."""
    size = ctypes.sizeof(kind)
    queues = [kind.from_buffer(state, at) for at in range(0, len(state), size)]
    for qid, queue in enumerate(queues):
        queue.qid = qid
    return queues
