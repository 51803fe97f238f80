"""Watches a worker on the manager's loop while a client is connected."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from bellwired.errors import CommandError
from bellwired.manager.holder import Holder
from bellwired.manager.watch import LOOKS, Watch
from bellwired.workers.wire import Drop, Keep
from bellwired.workers.worker_channel import WorkerChannel


class Watched:
    """The worker whose ledger ``holder`` has. ``hangs`` is told for how many seconds it has not got on."""

    def __init__(self, holder: Holder, hangs: Callable[[float], Coroutine[Any, Any, None]]) -> None:
        self._holder = holder
        self._watch = Watch(holder)
        self._hangs = hangs
        self._channel: WorkerChannel | None = None
        self._limit = 0.0
        self._questions = 0
        self._next: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self, channel: WorkerChannel, limit: float) -> None:
        """The worker behind ``channel`` serves. It is not watched if ``limit`` is 0."""
        self._channel, self._limit = channel, limit
        self._look_later()

    def end(self) -> None:
        """The worker has ended."""
        self._channel = None
        self._watch.answered()
        if self._next is not None:
            self._next.cancel()
            self._next = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def heard(self, message: Keep | Drop, fds: list[int]) -> None:
        """Let the holder take over a change of the ledger: by that a client comes."""
        self._holder.heard(message, fds)
        self._look_later()

    async def answered(self, question: Awaitable[object]) -> None:
        """Wait for the answer to a question that a worker which gets on answers at once.

        Returns, too, if the worker ends before it has answered: it is killed if it does not get on. Else a CommandError
        says why there is no answer.
        """
        channel = self._channel
        self._questions += 1
        try:
            await question
        except CommandError:
            if channel is None or channel is self._channel:
                raise
        finally:
            self._questions -= 1

    def _look_later(self) -> None:
        if self._channel is not None and self._next is None and self._limit and self._holder.holds:
            self._next = asyncio.get_running_loop().call_later(self._limit / LOOKS, self._look)

    def _look(self) -> None:
        self._next = None
        waited = self._watch.look(self._limit / LOOKS, asked=self._questions > 0)
        if waited >= self._limit:
            self.end()
            self._task = asyncio.create_task(self._hangs(waited))
        elif self._channel is not None:
            if waited and (self._task is None or self._task.done()):
                self._task = asyncio.create_task(self._ask(self._channel))
            self._look_later()

    async def _ask(self, channel: WorkerChannel) -> None:
        with contextlib.suppress(CommandError):
            await channel.ask("ping", self._limit)
            self._watch.answered()
