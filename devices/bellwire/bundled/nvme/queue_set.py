"""All queues of a controller: doorbells, which may lie in guest memory, move their tails and heads (§3.1.24, §7.13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bellwire.bundled.nvme.events import Event
from bellwire.bundled.nvme.features import Features
from bellwire.bundled.nvme.interrupts import Interrupts
from bellwire.bundled.nvme.queues import Completion, CompletionQueue, SubmissionQueue
from bellwire.bundled.nvme.registers import ADMIN_ENTRIES, Registers
from bellwire.bundled.nvme.shadow import Shadow


class QueueSet:
    """Submission and completion queues by number (0: the admin queues), and the interrupts of completion queues.

    The host may create ``most`` I/O queue pairs. ``bad`` is called with the event of a wrong doorbell write. Methods
    raise a GuestError if the memory of a queue is gone.
    """

    def __init__(
        self,
        device: Registers,
        submissions: Sequence[SubmissionQueue],
        completions: Sequence[CompletionQueue],
        shadow: Shadow,
        features: Features,
        most: int,
        bad: Callable[[Event], None],
    ) -> None:
        self.submissions = submissions
        self.completions = completions
        self.admin = submissions[0]
        submissions[0].most = completions[0].most = ADMIN_ENTRIES
        self.shadow = shadow
        self.most = most
        self.interrupts = Interrupts(device, features, completions)
        self._dma, self._irq = device.dma, device.irq
        self._bad = bad
        self._warn = device.warn

    def create_admin(self, asq: int, submissions: int, acq: int, completions: int) -> None:
        """Create the admin queues. Their addresses and sizes come from registers (§7.6.1)."""
        self.submissions[0].create(asq, submissions, 0)
        self.completions[0].create(acq, completions, 0, True)

    def impossible(self, journal: Sequence[tuple[int, bytes]]) -> str:
        """The queue or the entry of a ``journal`` whose restored state cannot be one, in words; empty if all can."""
        for kind, queues in (("submission", self.submissions), ("completion", self.completions)):
            for queue in queues:
                if not queue.is_possible:
                    return f"{kind} queue {queue.qid} of {queue.size} entries, head {queue.head}, tail {queue.tail}"
        for sq in self.submissions:
            if sq.size and not (sq.cqid < len(self.completions) and self.completions[sq.cqid].size):
                return f"submission queue {sq.qid} whose completion queue is {sq.cqid}"
        for sqid, _ in journal:
            if not (sqid < len(self.submissions) and self.submissions[sqid].size):
                return f"a command of submission queue {sqid}"
        return ""

    def find_ends(self) -> set[tuple[int, int]]:
        """A process has died: find where its completions end. Returns submission queue and id of the last ones."""
        return {each for cq in self.completions if cq.size for each in cq.find_end(self._dma)}

    def forget(self) -> None:
        """Delete all queues, and drop interrupts that are held back."""
        for queue in (*self.submissions, *self.completions):
            queue.size = 0
        self.shadow.configure(0, 0)
        self.interrupts.reset()
        self.interrupts.level()

    def rung_tail(self, qid: int, tail: int | None) -> SubmissionQueue | None:
        """Take the new tail of submission queue ``qid`` (§3.1.24). Returns it if it may have commands, else None.

        ``tail`` is None if only a shadow doorbell has the value: :meth:`fetch` reads it.
        """
        queue = self.submissions[qid] if qid < len(self.submissions) else None
        if queue is None or not queue.size:
            self._bad(Event.INVALID_DOORBELL_REGISTER)
        elif qid and self.shadow.active:
            return queue
        elif tail is None:
            self._warn("submission queue %d rung by event, and the guest has no shadow doorbells", qid)
        elif tail >= queue.size:
            self._bad(Event.INVALID_DOORBELL_VALUE)
        else:
            queue.tail = tail
            return queue
        return None

    def rung_head(self, qid: int, head: int | None) -> list[SubmissionQueue]:
        """Take the new head of completion queue ``qid`` (§3.1.25). Returns the submission queues that wait for room."""
        queue = self.completions[qid] if qid < len(self.completions) else None
        if queue is None or not queue.size:
            self._bad(Event.INVALID_DOORBELL_REGISTER)
            return []
        was_full = queue.room <= 0
        if qid and self.shadow.active:
            self.look_at_head(queue)
        elif head is not None:
            self._move_head(queue, head)
        self.interrupts.level()
        if not was_full:
            return []
        return [sq for sq in self.submissions if sq.size and sq.cqid == qid and sq.head != sq.tail]

    def shadowed(self, sq: SubmissionQueue) -> bool:
        """Whether the tail of ``sq`` is a shadow doorbell."""
        return sq.qid != 0 and self.shadow.active

    def fetch(self, sq: SubmissionQueue, cq: CompletionQueue, most: int) -> bytes:
        """Take at most ``most`` commands of ``sq`` whose completions fit in ``cq``, up to where the ring wraps.

        If the queue is empty, the guest rings when it has more.
        """
        if sq.head == sq.tail and not (sq.qid and self.shadow.active and self._more_in_shadow(sq)):
            return b""
        if (room := cq.room) < most:
            room = self.room(sq, cq)
        return sq.fetch(self._dma, min(room, most))

    def _more_in_shadow(self, sq: SubmissionQueue) -> bool:
        """Whether an empty queue has new commands."""
        qid, before = sq.qid, sq.tail
        tail = self.shadow.tail(qid)
        if tail == before:  # only now: while the controller has commands to execute, the guest need not ring
            tail = self.shadow.wake_at_tail(qid, tail)
        if tail >= sq.size:
            self._bad(Event.INVALID_DOORBELL_VALUE)
            return False
        sq.tail = tail
        return tail != before

    def room(self, sq: SubmissionQueue, cq: CompletionQueue) -> int:
        """The number of commands of ``sq`` whose completions fit in ``cq``."""
        room = cq.room
        if room <= 0 and sq.qid and self.shadow.active:
            self.look_at_head(cq)
            room = cq.room
        return room

    def look_at_head(self, queue: CompletionQueue) -> None:
        """Read the head from the shadow doorbell. If INTx or a full queue waits for it, ask the guest to ring."""
        self._move_head(queue, self.shadow.head(queue.qid))
        if queue.room <= 0 or (self.interrupts.level_matters and queue.head != queue.tail):
            self._move_head(queue, self.shadow.wake_at_head(queue.qid, queue.head))

    def post(self, cq: CompletionQueue, completions: list[Completion]) -> None:
        """Write ``completions``, and interrupt. The caller has checked that there is room."""
        cq.post(self._dma, completions)
        self._posted(cq, len(completions))

    def post_successes(self, cq: CompletionQueue, sq: SubmissionQueue, cids: list[int]) -> None:
        """As :meth:`post`, for commands of ``sq`` that have succeeded, with no result."""
        cq.post_successes(self._dma, sq, cids)
        self._posted(cq, len(cids))

    def _posted(self, cq: CompletionQueue, count: int) -> None:
        if not self._irq.enabled and self.shadow.active and cq.qid and self.interrupts.level_matters:
            self.look_at_head(cq)
        self.interrupts.posted(cq, count)

    def _move_head(self, queue: CompletionQueue, head: int) -> None:
        size = queue.size
        if head >= size or (head - queue.head) % size > (queue.tail - queue.head) % size:
            self._bad(Event.INVALID_DOORBELL_VALUE)
        else:
            queue.head = head
