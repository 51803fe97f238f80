"""Commands that a fault strikes: they fail, wait, are lost or complete twice. Without a fault nothing of this runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from bellwire import Timer
from bellwire.bundled.nvme.command import COMMAND_SIZE, Command
from bellwire.bundled.nvme.queues import CompletionQueue, SubmissionQueue
from bellwire.bundled.nvme.status import DO_NOT_RETRY, MORE, CommandError, Status

if TYPE_CHECKING:
    from bellwire.bundled.nvme.controller import Controller
    from bellwire.bundled.nvme.engine import Engine

MEDIA = range(0x280, 0x300)
"""Status codes of type 2h: media and data integrity errors (§4.6.1.2.3)."""


class Fate(NamedTuple):
    """What becomes of a command. Without any of these it is executed."""

    status: Status = Status.SUCCESS
    """It fails with this status, and is not executed."""
    retry: bool | None = None
    """Whether the host may retry it (the Do Not Retry bit is clear); None: as the status suggests."""
    wait: float = 0.0
    """It is executed after so many seconds."""
    lost: bool = False
    """It never completes."""
    twice: bool = False
    """It completes a second time."""


Judge = Callable[[int, Command], Fate | None]
"""Decides on a command of the submission queue with this number; None: it is executed."""


class Waiting(NamedTuple):
    """A command that waits, and the judge that lets it wait."""

    judge: Judge | None
    timer: Timer
    sq: SubmissionQueue
    cq: CompletionQueue
    entry: bytes


class Interception:
    """Stands before the engine of ``controller`` as long as there is a judge, or while the queues are stalled.

    A command that waits is in the journal, as one that a thread executes: after a restore the judges see it again.
    """

    def __init__(self, controller: Controller, engine: Engine) -> None:
        self._controller = controller
        self._engine = engine
        self._plain = engine.execute, engine.drain
        self._judges: list[Judge] = []
        self._stalls = 0
        self._waiting: dict[int, Waiting] = {}
        """Commands by their slots in the journal."""

    def add(self, judge: Judge) -> None:
        """Ask ``judge`` about each command from now on, after those that were added before."""
        self._judges.append(judge)
        self._engine.execute = self._execute

    def remove(self, judge: Judge) -> None:
        """Ask ``judge`` no more. What it lets wait is executed with the device's next turn."""
        self._judges.remove(judge)
        for slot, waiting in self._waiting.items():
            if waiting.judge == judge:
                waiting.timer.cancel()
                self._waiting[slot] = waiting._replace(timer=self._controller.device.after(0, self._waited, slot))
        if not self._judges:
            self._engine.execute = self._plain[0]

    def stall(self) -> None:
        """Fetch no command from I/O queues until :meth:`go_on`."""
        self._stalls += 1
        self._engine.drain = self._drain

    def go_on(self) -> None:
        """End one :meth:`stall`, and execute what has come meanwhile if it was the last."""
        self._stalls -= 1
        if not self._stalls:
            self._engine.drain = self._plain[1]
            if self._controller.live:
                self._engine.kick_all()

    def forget(self) -> None:
        """The queues have ended: so do the commands that wait."""
        for slot, waiting in self._waiting.items():
            waiting.timer.cancel()
            self._controller.journal.strike(slot)
        self._waiting.clear()

    def clear(self) -> None:
        """The journal has been emptied."""
        for waiting in self._waiting.values():
            waiting.timer.cancel()
        self._waiting.clear()

    def _drain(self, sq: SubmissionQueue) -> None:
        if not sq.qid:
            self._plain[1](sq)

    def _execute(self, sq: SubmissionQueue, cq: CompletionQueue, block: bytes) -> None:
        """Decide on each command of a batch."""
        ahead = len(block) // COMMAND_SIZE
        cq.running += ahead  # each has its entry, whatever completes twice
        for at in range(0, len(block), COMMAND_SIZE):
            if not self._controller.live or not sq.size:
                break
            entry = block[at : at + COMMAND_SIZE]
            command = Command.unpack(entry)
            judge, fate = self._decide(sq.qid, command)
            cq.running -= 1
            ahead -= 1
            if fate.wait:
                self._wait(fate.wait, judge, sq, cq, entry)
            else:
                self._apply(fate, sq, cq, entry, command)
        cq.running -= ahead

    def _decide(self, qid: int, command: Command) -> tuple[Judge | None, Fate]:
        """What becomes of a command, and who has decided it."""
        for judge in list(self._judges):
            if (fate := judge(qid, command)) is not None:
                return judge, fate
        return None, Fate()

    def _apply(self, fate: Fate, sq: SubmissionQueue, cq: CompletionQueue, entry: bytes, command: Command) -> None:
        queues, controller = self._engine.queues, self._controller
        if fate.lost:
            return
        if fate.status is not Status.SUCCESS:
            controller.logs.failed(sq.qid, command, CommandError(fate.status))
            controller.logs.counters.media += fate.status in MEDIA
            field = fate.status.field
            if fate.retry is not None:
                field = field & ~DO_NOT_RETRY | (0 if fate.retry else DO_NOT_RETRY)
            queues.post(cq, [(0, sq, command.cid, field | MORE)])
        else:
            self._plain[0](sq, cq, entry)
            if fate.twice and controller.live and cq.size and cq.room > 0:
                queues.post(cq, [(0, sq, command.cid, 0)])

    def _wait(
        self, seconds: float, judge: Judge | None, sq: SubmissionQueue, cq: CompletionQueue, entry: bytes
    ) -> None:
        slot = self._controller.journal.note(sq.qid, entry)
        sq.running += 1
        cq.running += 1
        timer = self._controller.device.after(seconds, self._waited, slot)
        self._waiting[slot] = Waiting(judge, timer, sq, cq, entry)

    def _waited(self, slot: int) -> None:
        _, _, sq, cq, entry = self._waiting.pop(slot)
        self._controller.journal.strike(slot)
        if self._controller.live:
            sq.running -= 1
            cq.running -= 1
            self._engine.begin(self._plain[0], sq, cq, entry)
