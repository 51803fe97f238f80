"""The engine: it fetches commands, executes them or gives them to threads, and posts completions (§4.1, §7.2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import perf_counter_ns
from typing import TYPE_CHECKING, NamedTuple

from bellwire import GuestError, Job, Meter, Pool
from bellwire.bundled.nvme.admin import Admin
from bellwire.bundled.nvme.at_once import AtOnce
from bellwire.bundled.nvme.command import COMMAND_SIZE, Command
from bellwire.bundled.nvme.interception import Interception
from bellwire.bundled.nvme.io import AT_ONCE, SECTOR_SHIFT, Io, blame
from bellwire.bundled.nvme.journal import Journal
from bellwire.bundled.nvme.queues import BATCH, Completion, CompletionQueue, SubmissionQueue
from bellwire.bundled.nvme.status import MORE, CommandError
from bellwire.bundled.nvme.task import Task
from bellwire.storage.aio import Transfer

if TYPE_CHECKING:
    from bellwire.bundled.nvme.controller import Controller

BURST = 16 * BATCH
"""The commands that are fetched from one queue before other queues get their turn."""

Run = Callable[[SubmissionQueue, bytes], Completion | None]
"""Executes one command. The result is None if it completes later."""

Execute = Callable[[SubmissionQueue, CompletionQueue, bytes], None]
"""Executes a batch of commands, and posts what is done."""


class Flight(NamedTuple):
    """A command that a thread executes. ``ending`` runs afterwards, if the host still waits for the command."""

    slot: int
    sq: SubmissionQueue
    command: Command
    ending: Callable[[], None] | None
    begun: int
    """The time of its start in ns."""


class Engine:
    """Executes the commands in the queues of ``controller``. ``journal`` has the commands that threads execute."""

    pool: Pool

    def __init__(self, controller: Controller, journal: Journal) -> None:
        self._controller = controller
        self.queues = self._queues = controller.queues
        self._logs = controller.logs
        self._journal = journal
        self._admin = Admin(controller)
        self._io = Io(
            controller.pages, controller.namespaces, controller.features, controller.logs.counters, controller.save
        )
        self._dma = controller.device.dma
        self._at_once = AtOnce(self._dma, controller.namespaces, self._io, controller.logs.counters)
        self._flights: dict[int, Flight] = {}
        self._again: set[int] = set()
        self._loose: int  # jobs under way that belong to no command
        self._waiting: deque[tuple[Job, bool]] = deque()
        self._writes: list[Job] = []  # of the batch: one thread does them, since each takes about as long as a wake-up
        self._meter = Meter(controller.device, self._totals)
        self.execute: Execute = self._execute
        """Executes a batch of commands. Faults put something else in its place."""
        self.drain: Callable[[SubmissionQueue], None] = self._drain
        """Fetches and executes commands of a queue. Faults put something else in its place."""
        self.interception = Interception(controller, self)

    def _totals(self) -> dict[str, tuple[int, int]]:
        """Operations and bytes, from the counters of SMART."""
        done = self._logs.counters
        return {
            "read": (done.reads, done.sectors_read << SECTOR_SHIFT),
            "write": (done.writes, done.sectors_written << SECTOR_SHIFT),
        }

    # -- starting and stopping

    @property
    def busy(self) -> bool:
        """Whether threads execute commands."""
        return bool(self._flights)

    def forget(self) -> None:
        """The queues have ended. Threads may still execute their commands."""
        self._again.clear()
        self.interception.forget()

    def clear(self) -> None:
        """Start again: no thread works for the device, and the state is zero."""
        self._drop()
        self._journal.clear()

    def restored(self, *, died: bool = False) -> list[tuple[int, bytes]]:
        """The state has been restored. Returns the submission queues and commands that were under way in it.

        If a process has ``died`` at any point, the queues say which of them it has completed.
        """
        self._drop()
        self._again.clear()
        self._queues.interrupts.reset()
        entries = dict.fromkeys(self._journal.restored())
        if not self._controller.live:
            return []
        completed = self._queues.find_ends() if died else set()
        for sq in self._queues.submissions:
            if sq.size:
                entries |= dict.fromkeys((sq.qid, entry) for entry in sq.reopen())
                if sq.deleter and (0, sq.deleter - 1) in completed:
                    sq.size = 0
        return [(sqid, entry) for sqid, entry in entries if (sqid, Command.unpack(entry).cid) not in completed]

    def _drop(self) -> None:
        """Forget the jobs of threads, which have dropped them."""
        self._flights.clear()
        self._waiting.clear()
        self._loose = 0
        self.interception.clear()

    def begin_again(self, entries: list[tuple[int, bytes]]) -> None:
        """Execute the commands that :meth:`restored` returned, and look at all queues."""
        queues = self._queues
        for queue in (*queues.submissions, *queues.completions):
            queue.running = 0
        queues.completions[0].running = sum(sq.deleter != 0 for sq in queues.submissions if sq.size)
        self._admin.again = True
        for sqid, entry in entries:
            sq = queues.submissions[sqid]
            if sq.size:
                self._guarded(self.execute, sq, queues.completions[sq.cqid], entry)
        self._admin.again = False
        for cq in queues.completions:
            cq.settle()
        self._finish_deletions()
        self.kick_all()
        queues.interrupts.tell_again()

    # -- doorbells

    def ring_tail(self, qid: int, tail: int | None) -> None:
        """Submission queue ``qid`` has a new tail (§3.1.24); None: only shadow doorbells know it."""
        if self._controller.live and (sq := self._queues.rung_tail(qid, tail)) is not None:
            try:
                self.drain(sq)
            except GuestError as error:
                self._controller.break_down(str(error))

    def ring_head(self, qid: int, head: int | None) -> None:
        """Completion queue ``qid`` has a new head (§3.1.25): entries are free again."""
        if self._controller.live:
            self._guarded(self._take_head, qid, head)

    def _take_head(self, qid: int, head: int | None) -> None:
        for sq in self._queues.rung_head(qid, head):
            self._work_off(sq)
        if qid == 0:
            self.tell_events()

    def kick_all(self) -> None:
        """Execute the commands in every queue."""
        for queue in self._queues.submissions:
            if queue.size:
                self._work_off(queue)

    # -- commands

    def _work_off(self, queue: SubmissionQueue) -> None:
        """Fetch and execute the commands in ``queue``. If its memory is gone, the controller fails (CSTS.CFS)."""
        try:
            self.drain(queue)
        except GuestError as error:
            self._controller.break_down(str(error))

    def begin(self, execute: Execute, sq: SubmissionQueue, cq: CompletionQueue, entry: bytes) -> None:
        """Execute a command that has waited."""
        self._guarded(execute, sq, cq, entry)
        if self._controller.live:
            self._finish_deletions()

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            work(*arguments)
        except GuestError as error:
            self._controller.break_down(str(error))

    def _drain(self, sq: SubmissionQueue) -> None:
        queues, controller, io, journal = self._queues, self._controller, self._io, self._journal
        cq = queues.completions[sq.cqid]
        io.budget = AT_ONCE
        if sq.deleter:
            return
        for _ in range(BURST // BATCH):
            block = queues.fetch(sq, cq, min(BATCH, len(journal.free)))
            if not block:
                return
            self.execute(sq, cq, block)
            sq.word[0] = 0
            cq.settle()
            if not controller.live or not sq.size or sq.deleter:
                return
            if io.budget < AT_ONCE // 2:  # another turn of the loop costs less than a thread
                break
        if (sq.head != sq.tail or queues.shadowed(sq)) and sq.qid not in self._again:
            self._again.add(sq.qid)
            controller.device.after(0, self._continue, sq)

    def _continue(self, sq: SubmissionQueue) -> None:
        self._again.discard(sq.qid)
        if self._controller.live and sq.size:
            self._work_off(sq)

    def _execute(self, sq: SubmissionQueue, cq: CompletionQueue, block: bytes) -> None:
        """Execute a batch, and post the completions of the commands that are done together."""
        if not sq.qid:
            entries = [block[at : at + COMMAND_SIZE] for at in range(0, len(block), COMMAND_SIZE)]
            self._finish_batch(sq, cq, [], entries, 0)
            return
        begun = perf_counter_ns()
        done, left, rest = self._at_once.transfer(block)
        if rest:
            sq.give_back(rest)
        if left:
            self._finish_batch(sq, cq, done, left, begun)
        else:
            self._meter.took(perf_counter_ns() - begun, len(done))
            self._queues.post_successes(cq, sq, done)

    def _finish_batch(
        self, sq: SubmissionQueue, cq: CompletionQueue, done: list[int], left: list[bytes], begun: int
    ) -> None:
        """Execute the commands that are ``left`` of a batch, and post their completions with those of what is done."""
        count = len(done) + len(left)
        cq.running += count
        completions = self._one_by_one(self._execute_io if sq.qid else self._execute_admin, sq, left)
        cq.running -= count
        if not self._controller.live:
            return
        if sq.qid and (ended := len(done) + len(completions)):
            self._meter.took(perf_counter_ns() - begun, ended)
        if done:
            self._queues.post_successes(cq, sq, done)
        if completions:
            self._queues.post(cq, completions)

    def _one_by_one(self, run: Run, sq: SubmissionQueue, entries: list[bytes]) -> list[Completion]:
        """Execute commands that are not done yet. Returns the completions of those that no thread has."""
        try:
            return [each for entry in entries if (each := run(sq, entry)) is not None]
        finally:
            if self._writes:
                self.pool.submit(*self._writes)
                self._writes.clear()

    def _execute_admin(self, sq: SubmissionQueue, entry: bytes) -> Completion | None:
        command = Command.unpack(entry)
        try:
            result = self._admin.execute(command)
        except (CommandError, OSError) as error:
            return self._io_failed(sq, command, error)
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
        job.tag = self._flights[slot] = Flight(slot, sq, command, job.tag, perf_counter_ns())
        sq.running += 1
        self._queues.completions[sq.cqid].running += 1
        if isinstance(job, Task) and job.alone:
            self._waiting.append((job, True))
            self._begin_waiting()
        elif isinstance(job, Transfer) and job.write:
            self._writes.append(job)
        else:
            self.pool.submit(job)

    def background(self, job: Job, done: Callable[[Job], None], *, alone: bool = False) -> None:
        """Run a job that no command waits for on a thread, then ``done(job)``. ``alone`` is as for a :class:`Task`."""
        job.tag = done
        self._waiting.append((job, alone))
        self._begin_waiting()

    def _begin_waiting(self) -> None:
        """Start waiting jobs in their order, up to a job that must run alone while others still run."""
        while self._waiting:
            job, alone = self._waiting[0]
            if alone and (self._loose or any(flight.sq.qid for flight in self._flights.values())):
                return
            self._waiting.popleft()
            self._loose += not isinstance(job.tag, Flight)
            self.pool.submit(job)

    def _io_failed(self, sq: SubmissionQueue, command: Command, error: Exception) -> Completion:
        if not isinstance(error, CommandError):
            self._controller.device.warn("disk: %s", error)
            self._logs.counters.media += 1
            self._controller.media_failed(error)
        return self._failed(sq, command, blame(error, command.opcode))

    def _failed(self, sq: SubmissionQueue, command: Command, error: CommandError) -> Completion:
        self._logs.failed(sq.qid, command, error)
        return (0, sq, command.cid, error.status.field | MORE)

    def finished(self, jobs: list[Job]) -> None:
        """Threads have done ``jobs``: post their completions, queue by queue, and start jobs that waited."""
        queues, controller = self._queues, self._controller
        by_queue: dict[int, list[Completion]] = {}
        ended: list[int] = []
        now, took = perf_counter_ns(), self._meter.took
        for job in jobs:
            flight = job.tag
            if not isinstance(flight, Flight):  # the job belongs to no command
                self._loose -= 1
                flight(job)
                continue
            if flight.sq.qid:
                took(now - flight.begun)
            result = self._task_ended(job) if isinstance(job, Task) else 0
            del self._flights[flight.slot]
            ended.append(flight.slot)
            if controller.live:
                sq = flight.sq
                sq.running -= 1
                queues.completions[sq.cqid].running -= 1
                by_queue.setdefault(sq.cqid, []).append(self._outcome(flight, job, result))
        self._begin_waiting()
        for cqid, completions in by_queue.items():
            self._guarded(queues.post, queues.completions[cqid], completions)
        for slot in ended:
            self._journal.strike(slot)
        for cqid in by_queue:
            queues.completions[cqid].settle()
        if controller.live:
            self._finish_deletions()
            for sq in queues.submissions:
                if sq.size and sq.head != sq.tail:
                    self._work_off(sq)
        else:
            controller.ended()

    @staticmethod
    def _task_ended(task: Task) -> int:
        try:
            return task.ended(task.error)
        except (CommandError, OSError) as error:
            task.error = task.error or error
            return 0

    def _outcome(self, flight: Flight, job: Job, result: int) -> Completion:
        error = job.error
        if error is None and flight.ending is not None:
            try:
                flight.ending()
            except CommandError as trouble:
                error = trouble
        if error is None:
            return (result, flight.sq, flight.command.cid, 0)
        return self._io_failed(flight.sq, flight.command, error)

    def _finish_deletions(self) -> None:
        queues = self._queues
        for sq in queues.submissions:
            if sq.size and sq.deleter and not sq.running:
                queues.completions[0].running -= 1
                self.complete(0, sq.deleter - 1, 0)
                sq.size = 0
                queues.completions[0].settle()

    # -- completions

    def complete(self, result: int, cid: int, status: int) -> None:
        """Complete an admin command that had not completed yet."""
        queues = self._queues
        self._guarded(queues.post, queues.completions[0], [(result, queues.admin, cid, status)])

    def tell_events(self) -> None:
        """Complete an event request, if there is an event, and room in the queue."""
        if not self._controller.live:
            return
        if self._queues.completions[0].room > 0 and (news := self._controller.events.deliver()) is not None:
            result, cid = news
            self.complete(result, cid, 0)
