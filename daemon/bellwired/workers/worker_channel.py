"""The manager's end of a worker's control socket: questions, answers, and the worker's events."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from bellwired.box.calls import advice
from bellwired.box.refusals import Refusals
from bellwired.errors import CommandError
from bellwired.workers import wire
from bellwired.workers.wire import Answer, Ask, Drop, Inherit, Keep, Report, WireError

log = logging.getLogger("bellwired")
ANSWER_TIMEOUT = 5.0


class WorkerChannel:
    """Both ends of it, until :meth:`handed_over`; ``heard`` gets every event. A CommandError when there can be none.

    ``held`` gets what the worker's ledger keeps and drops, with descriptors that it owns from then on. If this end is
    ``stored`` somewhere, a message leaves the queue only when it has been handled.
    """

    def __init__(
        self,
        name: str,
        heard: Callable[[Report], None],
        held: Callable[[Keep | Drop, list[int]], None] | None = None,
        *,
        stored: bool = False,
    ) -> None:
        self.name = name
        self._heard = heard
        self._held = held
        self._stored = stored
        self.memory_count = -1
        """The worker's smaps_rollup, open; -1 before the worker is in its box."""
        self._refusals: Refusals | None = None
        self._boxed = False
        try:
            self._sock, self.theirs = wire.pair()
        except OSError as error:  # no descriptor left
            raise CommandError(f"{name} cannot be spoken to: {error.strerror}") from None
        self._sock.setblocking(False)
        self._open = True
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._lent: dict[int, int] = {}
        """The questions whose answers come with a descriptor, and the descriptor once it is there."""
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._read)

    @property
    def ours(self) -> socket.socket:
        """This end."""
        return self._sock

    @property
    def over(self) -> bool:
        """Whether the worker has closed its end: it is about to end, or has ended."""
        return not self._open

    def handed_over(self) -> None:
        """Close the worker's end here, after the worker has inherited it."""
        self.theirs.close()

    async def ask(self, what: str, timeout: float, fds: Sequence[int] = (), **arguments: str) -> Any:
        """Ask the worker. Raises a CommandError if there is none, or if it refuses or does not answer in time."""
        return await self._ask(Ask(next(self._numbers), what, arguments), timeout, fds)

    async def borrow(self, what: str, timeout: float = ANSWER_TIMEOUT, **arguments: str) -> tuple[Any, int]:
        """Ask as :meth:`ask` does, for an answer that comes with a descriptor. The caller owns it."""
        number = next(self._numbers)
        self._lent[number] = -1
        try:
            answer = await self._ask(Ask(number, what, arguments), timeout)
        except BaseException:
            wire.close([self._lent.pop(number)])  # -1, unless it has come just now
            raise
        fd = self._lent.pop(number)
        if fd < 0:
            raise CommandError(f"{self.name} has sent no descriptor: are too many files open?")
        return answer, fd

    async def _ask(self, question: Ask, timeout: float, fds: Sequence[int] = ()) -> Any:
        future = self._answers[question.number] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                self._send(question, fds)
                return await future
        except TimeoutError:
            raise CommandError(f"{self.name} has not answered within {timeout:g} s") from None
        finally:
            del self._answers[question.number]

    def tell(self, what: str) -> None:
        """Send a question without waiting for the answer. Failures are ignored."""
        try:
            self._send(Ask(next(self._numbers), what))
        except CommandError as error:
            log.debug("%s", error)

    def bequeath(self, messages: list[tuple[Inherit, list[int]]]) -> None:
        """Give a worker that has just been started what the one before it has left. Raises a CommandError."""
        try:
            for message, fds in messages:
                wire.send(self._sock, message, fds)
        except OSError as error:
            raise CommandError(f"{self.name} cannot be handed over: {error.strerror}") from None

    def close(self) -> None:
        """Read the worker's last messages, and close the socket."""
        while self._open and self._read():
            pass
        self._stop_reading()
        self._let_go()
        self._sock.close()
        self.theirs.close()
        for future in self._answers.values():
            if not future.done():
                future.set_exception(CommandError(f"{self.name}: its worker has ended"))

    def _send(self, message: Ask, fds: Sequence[int] = ()) -> None:
        if not self._open:
            raise CommandError(f"{self.name}: its worker has ended")
        try:
            wire.send(self._sock, message, list(fds))
        except OSError as error:
            raise CommandError(f"{self.name} cannot be asked: {error.strerror}") from None

    def _read(self) -> bool:
        """Read one message, and handle it. False if there is none."""
        try:
            received = wire.receive(self._sock, peek=self._stored)
        except BlockingIOError:
            return False
        except WireError as error:
            log.error("%s: its worker talks nonsense: %s", self.name, error)
            received = None
        if received is None:
            self._stop_reading()
            return False
        try:
            self._handle(*received)
        finally:
            if self._stored:
                wire.discard(self._sock)
        return True

    def _handle(self, message: wire.Message, fds: list[int]) -> None:
        if isinstance(message, Keep | Drop) and self._held is not None:
            self._held(message, fds)
            return
        if isinstance(message, Report) and message.kind == "boxed":
            if self._boxed:  # the device's code sends this: the worker itself has sent the first one
                wire.close(fds)
                return
            self._boxed = True
            self._take(fds)
            fds = []
        if isinstance(message, Answer):
            self._answered(message, fds)
            return
        wire.close(fds)
        if isinstance(message, Report):
            self._heard(message)

    def _take(self, fds: list[int]) -> None:
        """Take what comes with the report of a box: the count of the worker's memory, and the calls it is refused."""
        if fds:
            self.memory_count = fds[0]
        if len(fds) > 1:
            self._refusals = Refusals(fds[1], self._refused)
            asyncio.get_running_loop().add_reader(fds[1], self._refuse, fds[1])
        wire.close(fds[2:])

    def _refuse(self, listener: int) -> None:
        """Answer a call that the worker's box refuses."""
        if self._refusals is not None and not self._refusals.answer():
            asyncio.get_running_loop().remove_reader(listener)

    def _refused(self, call: str, word: str) -> None:
        text = f"its box refuses {call}; {advice(word)}"
        self._heard(Report("denied", {"call": call, "word": word, "text": text}))

    def _let_go(self) -> None:
        """Close what came with the report of a box."""
        if self.memory_count >= 0:
            wire.close([self.memory_count])
            self.memory_count = -1
        if self._refusals is not None:
            if self._refusals.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(self._refusals.fileno())
            self._refusals.close()
            self._refusals = None

    def _answered(self, answer: Answer, fds: list[int]) -> None:
        future = self._answers.get(answer.number)
        if fds and future is not None and not future.done() and self._lent.get(answer.number) == -1:
            self._lent[answer.number] = fds.pop(0)
        wire.close(fds)
        if future is None or future.done():
            return
        if answer.error:
            future.set_exception(CommandError(f"{self.name}: {answer.error}"))
        else:
            future.set_result(answer.value)

    def _stop_reading(self) -> None:
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
