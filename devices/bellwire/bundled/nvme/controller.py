"""The controller: it starts, fetches commands, has them executed, tells the host, and stops (§3.1, §7.3, §7.6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bellwire import GuestError, Job, Pool
from bellwire.bundled.nvme import registers
from bellwire.bundled.nvme.admin import Admin
from bellwire.bundled.nvme.at_once import AtOnce
from bellwire.bundled.nvme.command import ALL_NAMESPACES, COMMAND_SIZE, Command
from bellwire.bundled.nvme.events import Event, Events, EventState
from bellwire.bundled.nvme.features import Features
from bellwire.bundled.nvme.guest_pages import GuestPages
from bellwire.bundled.nvme.identify import ControllerIdentity
from bellwire.bundled.nvme.interrupts import Interrupts
from bellwire.bundled.nvme.io import AT_ONCE, Io, blame, flush_all
from bellwire.bundled.nvme.journal import Journal
from bellwire.bundled.nvme.logs import Counters, Logs
from bellwire.bundled.nvme.namespaces import Namespaces
from bellwire.bundled.nvme.queues import BATCH, Completion, CompletionQueue, SubmissionQueue, queues_in
from bellwire.bundled.nvme.registers import ControllerConfiguration, Registers
from bellwire.bundled.nvme.shadow import Shadow, ShadowState
from bellwire.bundled.nvme.status import MORE, CommandError
from bellwire.model.limited import LimitedLog

BURST = 16 * BATCH
"""Commands fetched from one queue before others get their turn."""


class StateViews(NamedTuple):
    """Where in the device's state the controller keeps what it must remember."""

    submissions: memoryview
    completions: memoryview
    features: memoryview
    counters: memoryview
    errors: memoryview
    events: memoryview
    shadow: memoryview
    journal: memoryview


class Flight(NamedTuple):
    """A command that a thread is at work on."""

    slot: int
    sq: SubmissionQueue
    command: Command
    ending: Callable[[], None] | None


class Controller:
    """Joins the parts. ``device`` has the registers; ``queues`` I/O queue pairs may be created."""

    def __init__(
        self,
        device: Registers,
        state: StateViews,
        namespaces: Namespaces,
        identity: ControllerIdentity,
        queues: int,
    ) -> None:
        self.device = device
        self._file = device.core.state.registers[0]
        self.namespaces = namespaces
        self.identity = identity
        self.queues = queues
        self.pool: Pool
        self.submissions = queues_in(state.submissions, SubmissionQueue)
        self.completions = queues_in(state.completions, CompletionQueue)
        self.features = Features(state.features.cast("I"), queues, len(namespaces))
        self.logs = Logs(Counters.from_buffer(state.counters), state.errors, self.features)
        self.events = Events(EventState.from_buffer(state.events))
        self.shadow = Shadow(ShadowState.from_buffer(state.shadow), device.dma)
        self.pages = GuestPages(device.dma)
        self.interrupts = Interrupts(device, self.features, self.completions)
        self._journal = Journal(state.journal)
        self._admin = Admin(self)
        self._io = Io(self.pages, namespaces, self.features, self.logs.counters)
        self._at_once = AtOnce(device.dma, namespaces, self._io, self.logs.counters)
        self._flights: dict[int, Flight] = {}
        self._again: set[int] = set()
        self._shutdown: Job | None = None
        self._log: LimitedLog = device.core.log

    # -- starting and stopping

    @property
    def live(self) -> bool:
        """Whether commands are taken: ready, not about to stop, and nothing has broken.

        This is asked at every turn, so it looks at the register's lowest byte itself.
        """
        status = self._file[Registers.csts.offset]
        return status & (registers.READY | registers.FATAL) == registers.READY and self.submissions[0].size != 0

    @property
    def stopping(self) -> bool:
        """Whether it is ready only until no thread touches guest memory any more: the queues are gone already."""
        return bool(self.device.csts & registers.READY) and self.submissions[0].size == 0

    def configure(self, before: int, now: int) -> None:
        """CC went from ``before`` to ``now`` (§3.1.5)."""
        old, new = ControllerConfiguration(before), ControllerConfiguration(now)
        if new.enable and not old.enable:
            if not self.device.csts & registers.READY:  # else it is still stopping, and starts when it has stopped
                self._start(new)
        elif old.enable and not new.enable:
            self._stop()
        if new.shutdown and new.shutdown != old.shutdown:
            self._shut_down()

    def power_on(self) -> None:
        """After a reset of the whole device: its state has been zeroed, and no thread works for it any more."""
        self._forget()
        self._flights.clear()
        self._journal.clear()
        self.features.reset()

    def restored(self) -> None:
        """The state is another one: do again what was under way in it."""
        self._flights.clear()
        self._again.clear()
        self.interrupts.reset()
        entries = list(self._journal.restored())
        if self.device.csts & registers.SHUTDOWN_BUSY:
            self._shut_down()
        if not self.live:
            if self.stopping:
                self._stopped()
            return
        for queue in (*self.submissions, *self.completions):
            queue.running = 0
        self.completions[0].running = sum(sq.deleter != 0 for sq in self.submissions if sq.size)
        for sqid, entry in entries:
            sq = self.submissions[sqid]
            self._guarded(self._execute, sq, self.completions[sq.cqid], entry)
        self._finish_deletions()
        self.kick_all()
        self.interrupts.tell_again()

    def _start(self, configuration: ControllerConfiguration) -> None:
        """§7.6.1: the admin queues come from registers."""
        device = self.device
        sizes = device.aqa
        submission, completion = (sizes & 0xFFF) + 1, (sizes >> 16) + 1
        if configuration.command_set or configuration.page_size or configuration.arbitration:
            self.break_down(f"CC {device.cc:#x} asks for what CAP does not offer")
        elif min(submission, completion) < 2:
            self.break_down(f"AQA {sizes:#x}: a queue has at least two entries")
        else:
            self._forget()
            self.features.reset()
            self.submissions[0].create(device.asq, submission, 0)
            self.completions[0].create(device.acq, completion, 0, True)
            device.csts = registers.READY

    def _stop(self) -> None:
        """§7.3.2: queues are gone at once; ready until no thread touches guest memory any more."""
        self._forget()
        if not self._flights:
            self._stopped()

    def _stopped(self) -> None:
        device = self.device
        device.csts = 0
        if device.cc & registers.ENABLE:
            self._start(ControllerConfiguration(device.cc))

    def _forget(self) -> None:
        for queue in (*self.submissions, *self.completions):
            queue.size = 0
        self.shadow.configure(0, 0)
        self.events.reset()
        self.interrupts.reset()
        self.interrupts.level()
        self._again.clear()

    def _shut_down(self) -> None:
        """§7.6.2: what has been written goes onto the media."""
        self.device.csts = self.device.csts & ~registers.SHUTDOWN_MASK | registers.SHUTDOWN_BUSY
        self._shutdown = Job(flush_all, self.namespaces.addressed(ALL_NAMESPACES))
        self.pool.submit(self._shutdown)

    def break_down(self, why: str) -> None:
        """Controller Fatal Status (§9.5): only a reset helps."""
        self._log.warning("fatal", "controller fatal status: %s", why)
        self.device.csts |= registers.FATAL

    # -- doorbells

    def ring_tail(self, qid: int, tail: int | None) -> None:
        """Submission queue ``qid`` has a new tail (§3.1.24); None: only shadow doorbells know it."""
        queue = self.submissions[qid] if qid < len(self.submissions) else None
        if not self.live:
            return
        if queue is None or not queue.size:
            self._bad_doorbell(Event.INVALID_DOORBELL_REGISTER)
        elif qid and self.shadow.active:
            self._work_off(queue)
        elif tail is None:
            self._log.warning("blind", "submission queue %d rung by event, and the guest has no shadow doorbells", qid)
        elif tail >= queue.size:
            self._bad_doorbell(Event.INVALID_DOORBELL_VALUE)
        else:
            queue.tail = tail
            self._work_off(queue)

    def ring_head(self, qid: int, head: int | None) -> None:
        """Completion queue ``qid`` has a new head (§3.1.25): entries are free again."""
        queue = self.completions[qid] if qid < len(self.completions) else None
        if not self.live:
            return
        if queue is None or not queue.size:
            self._bad_doorbell(Event.INVALID_DOORBELL_REGISTER)
            return
        was_full = queue.room <= 0
        if qid and self.shadow.active:
            self._guarded(self._look_at_head, queue)
        elif head is not None:
            self._move_head(queue, head)
        self._freed(queue, was_full=was_full)

    def kick_all(self) -> None:
        """Look at every queue."""
        for queue in self.submissions:
            if queue.size:
                self._work_off(queue)

    def _look_at_head(self, queue: CompletionQueue) -> None:
        """Take the head from the shadow, and be told of its next move if the line or a full queue waits for it."""
        self._move_head(queue, self.shadow.head(queue.qid))
        if queue.room <= 0 or (self.interrupts.level_matters and queue.head != queue.tail):
            self._move_head(queue, self.shadow.wake_at_head(queue.qid, queue.head))

    def _move_head(self, queue: CompletionQueue, head: int) -> None:
        size = queue.size
        if head >= size or (head - queue.head) % size > (queue.tail - queue.head) % size:
            self._bad_doorbell(Event.INVALID_DOORBELL_VALUE)
        else:
            queue.head = head

    def _freed(self, queue: CompletionQueue, *, was_full: bool) -> None:
        self.interrupts.level()
        if was_full:  # else nobody has waited for this
            for submission in self.submissions:
                if submission.size and submission.cqid == queue.qid and submission.head != submission.tail:
                    self._work_off(submission)
        if queue.qid == 0:
            self.tell_events()

    def _bad_doorbell(self, event: Event) -> None:
        self.events.happened(event)
        self.tell_events()

    # -- commands

    def _work_off(self, queue: SubmissionQueue) -> None:
        """Fetch and execute what is in ``queue``; a guest that takes its memory away meanwhile breaks us down."""
        self._guarded(self._drain, queue)

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except GuestError as error:
            self.break_down(str(error))

    def _drain(self, sq: SubmissionQueue) -> None:
        shadowed = sq.qid != 0 and self.shadow.active
        if shadowed:
            self._take_tail(sq, self.shadow.tail(sq.qid))
        cq = self.completions[sq.cqid]
        self._io.budget = AT_ONCE
        for _ in range(BURST // BATCH):
            if not self.live or not sq.size or sq.deleter:
                return
            room = cq.room
            if room <= 0 and sq.qid and self.shadow.active:
                self._look_at_head(cq)
                room = cq.room
            block = sq.fetch(self.device.dma, min(room, BATCH, self._journal.room))
            if block:
                self._execute(sq, cq, block)
            elif not (shadowed and self._more_in_shadow(sq)):
                return
            elif self._io.budget < AT_ONCE // 2:  # rather once round the loop than to the threads
                break
        if sq.size and (shadowed or sq.head != sq.tail) and sq.qid not in self._again:
            self._again.add(sq.qid)
            self.device.after(0, self._continue, sq)

    def _more_in_shadow(self, sq: SubmissionQueue) -> bool:
        """Whether a queue that is done has got more to do; if not, the guest rings when it has."""
        if sq.head == sq.tail:
            tail = self.shadow.tail(sq.qid)
            if tail == sq.tail:  # only now: a guest that keeps us at work need not ring
                tail = self.shadow.wake_at_tail(sq.qid, tail)
            if tail != sq.tail:
                self._take_tail(sq, tail)
                return sq.head != sq.tail
        return False

    def _continue(self, sq: SubmissionQueue) -> None:
        self._again.discard(sq.qid)
        if self.live and sq.size:
            self._work_off(sq)

    def _take_tail(self, sq: SubmissionQueue, tail: int) -> None:
        if tail >= sq.size:
            self._bad_doorbell(Event.INVALID_DOORBELL_VALUE)
        else:
            sq.tail = tail

    def _execute(self, sq: SubmissionQueue, cq: CompletionQueue, block: bytes) -> None:
        """Execute a batch, and tell of what is done already in one go."""
        count = len(block) // COMMAND_SIZE
        cq.running += count
        if sq.qid:
            done, entries, rest = self._at_once.read(block)
            if rest:
                sq.give_back(rest)
            completions = [(0, sq, cid, 0) for cid in done]
            run = self._execute_io
        else:
            completions = []
            entries = [block[at : at + COMMAND_SIZE] for at in range(0, len(block), COMMAND_SIZE)]
            run = self._execute_admin
        completions += [each for entry in entries if (each := run(sq, entry)) is not None]
        cq.running -= count
        if completions and self.live:
            self._post(cq, completions)

    def _execute_admin(self, sq: SubmissionQueue, entry: bytes) -> Completion | None:
        command = Command.unpack(entry)
        try:
            result = self._admin.execute(command)
        except CommandError as error:
            return self._failed(sq, command, error)
        if isinstance(result, Job):
            self._begin(result, sq, entry, command)
            return None
        return None if result is None else (result, sq, command.cid, 0)

    def _execute_io(self, sq: SubmissionQueue, entry: bytes) -> Completion | None:
        command = Command.unpack(entry)
        try:
            job = self._io.execute(command)
        except (CommandError, OSError) as error:
            return self._io_failed(sq, command, error)
        if job is None:
            return (0, sq, command.cid, 0)
        self._begin(job, sq, entry, command)
        return None

    def _begin(self, job: Job, sq: SubmissionQueue, entry: bytes, command: Command) -> None:
        slot = self._journal.note(sq.qid, entry)
        job.tag = self._flights[slot] = Flight(slot, sq, command, job.tag)
        sq.running += 1
        self.completions[sq.cqid].running += 1
        self.pool.submit(job)

    def _io_failed(self, sq: SubmissionQueue, command: Command, error: Exception) -> Completion:
        if not isinstance(error, CommandError):
            self._log.warning("disk", "%s", error)
            self.logs.counters.media += 1
        return self._failed(sq, command, blame(error, command.opcode))

    def _failed(self, sq: SubmissionQueue, command: Command, error: CommandError) -> Completion:
        self.logs.failed(sq.qid, command, error)
        return (0, sq, command.cid, error.status.field | MORE)

    def finished(self, jobs: list[Job]) -> None:
        """Threads have done these: tell the host, each queue in one go, and go on with what had to wait."""
        by_queue: dict[int, list[Completion]] = {}
        for job in jobs:
            flight: Flight | None = job.tag
            if flight is None:
                self._shutdown_ended(job)
                continue
            del self._flights[flight.slot]
            self._journal.strike(flight.slot)
            if self.live:
                sq = flight.sq
                sq.running -= 1
                self.completions[sq.cqid].running -= 1
                by_queue.setdefault(sq.cqid, []).append(self._outcome(flight, job))
        for cqid, completions in by_queue.items():
            self._guarded(self._post, self.completions[cqid], completions)
        if self.live:
            self._finish_deletions()
            for sq in self.submissions:
                if sq.size and sq.head != sq.tail:
                    self._work_off(sq)
        elif self.stopping and not self._flights:
            self._stopped()

    def _outcome(self, flight: Flight, job: Job) -> Completion:
        error = job.error
        if error is None and flight.ending is not None:
            try:
                flight.ending()
            except CommandError as trouble:
                error = trouble
        if error is None:
            return (0, flight.sq, flight.command.cid, 0)
        return self._io_failed(flight.sq, flight.command, error)

    def _finish_deletions(self) -> None:
        for sq in self.submissions:
            if sq.size and sq.deleter and not sq.running:
                cid, sq.size = sq.deleter - 1, 0
                self.completions[0].running -= 1
                self.complete(0, cid, 0)

    def _shutdown_ended(self, job: Job) -> None:
        if job.error is not None:
            self._log.warning("disk", "flush at shutdown: %s", job.error)
        if job is self._shutdown and self.device.csts & registers.SHUTDOWN_BUSY:  # else a reset has come between
            self.device.csts ^= registers.SHUTDOWN_BUSY | registers.SHUTDOWN_DONE

    # -- telling the host

    def complete(self, result: int, cid: int, status: int) -> None:
        """Complete an admin command that was left open."""
        self._guarded(self._post, self.completions[0], [(result, self.submissions[0], cid, status)])

    def _post(self, cq: CompletionQueue, completions: list[Completion]) -> None:
        cq.post(self.device.dma, completions)
        if cq.qid and self.shadow.active and self.interrupts.level_matters:
            self._look_at_head(cq)
        self.interrupts.posted(cq, len(completions))

    def tell_events(self) -> None:
        """Complete an event request, if there is news and room."""
        if self.completions[0].room > 0 and (news := self.events.deliver()) is not None:
            result, cid = news
            self.complete(result, cid, 0)
