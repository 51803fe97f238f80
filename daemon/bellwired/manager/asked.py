"""Questions to the worker of a device under the manager."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bellwired.errors import CommandError
from bellwired.manager.life import State
from bellwired.workers import process
from bellwired.workers.worker_channel import ANSWER_TIMEOUT, WorkerChannel


class Asked:
    """The device ``name``, whose worker can be asked while it runs."""

    name: str
    state: State

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.changed: dict[str, str] = {}
        """Options whose present values differ from the file's. The next start uses the file's again."""
        self._channel: WorkerChannel | None = None

    @property
    def pid(self) -> int:
        """The worker's process ID; 0 without a worker."""
        raise NotImplementedError

    @property
    def memory(self) -> int:
        """The worker's proportional share (PSS) in bytes; 0 without a worker."""
        return process.memory(self.pid, self._channel.memory_count) if self._channel is not None and self.pid else 0

    async def set(self, option: str, value: str) -> None:
        """Change an option, until the worker is started again."""
        self.changed = dict(await self.ask("set", option=option, value=value))

    async def ask(self, what: str, timeout: float = ANSWER_TIMEOUT, fds: Sequence[int] = (), **arguments: str) -> Any:
        """Ask the worker. Raises a CommandError if there is none, or if it refuses or does not answer in time."""
        return await self.worker.ask(what, timeout, fds, **arguments)

    @property
    def worker(self) -> WorkerChannel:
        """The way to the worker. Raises a CommandError if none runs."""
        if self._channel is None or self.state is not State.RUNNING:
            hint = f"bellwire start {self.name}" if self.state in (State.STOPPED, State.FAILED) else ""
            raise CommandError(f"{self.name} is not running: it is {self.state}", hint)
        return self._channel
