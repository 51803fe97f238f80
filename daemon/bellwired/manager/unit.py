"""One device under the manager: its listener, its worker, and what to do when that ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bellwired import messages
from bellwired.errors import CommandError
from bellwired.manager import descriptors
from bellwired.manager.boxed import Boxed
from bellwired.manager.life import Restarts, State, how_it_ended
from bellwired.manager.noted import Line, Noted
from bellwired.manager.order import listens, order
from bellwired.manager.unit_socket import UnitSocket
from bellwired.settings import Daemon, Device
from bellwired.sources import Stamp, stamp
from bellwired.workers import process
from bellwired.workers.spawner import Child, Spawner
from bellwired.workers.wire import Report, Spawn
from bellwired.workers.worker import REFUSED
from bellwired.workers.worker_channel import WorkerChannel

log = logging.getLogger("bellwired")
ANSWER_TIMEOUT = 5.0
NEEDED = 6  # descriptors: the listener, both ends of the channel (one is closed again), the worker's pidfd, its box
KILL_TIMEOUT = 10.0  # for the kernel to end what was killed: disk wait may hold it up


class Unit(Noted):
    """The device ``name``. ``tell`` is called for every event.

    Code that starts or ends a worker holds ``_turn``. Code that waits for a ready worker does not, so that a stop need
    not wait for a device that hangs at its start.
    """

    def __init__(
        self,
        name: str,
        settings: Device,
        daemon: Daemon,
        path: Path,
        folder: Path,
        plugins: list[str],
        spawner: Spawner,
        tell: Callable[[Unit, str, dict[str, Any]], None],
    ) -> None:
        super().__init__(name, lambda kind, fields: tell(self, kind, fields))
        self.settings = settings
        self.daemon = daemon
        self.path = path
        self.folder = folder
        """The folder of its file: relative paths start there."""
        self.state = State.STOPPED
        self.since = time.time()
        self.restarts = 0
        self.error = ""
        self.kept = ""
        """Why the last reload has left it as it was."""
        self.socket = UnitSocket()
        self.files: dict[str, Stamp | None] = {}
        """The Python files that its last worker has loaded, and their states."""
        self.box = Boxed(name, spawner.groups, spawner.users)
        self.changed: dict[str, str] = {}
        """Options whose present values differ from the file's. The next start uses the file's again."""
        self._plugins = plugins
        self._spawner = spawner
        self._turn = asyncio.Lock()
        self._retired = False
        self._child: Child | None = None
        self._channel: WorkerChannel | None = None
        self._attempt: asyncio.Future[str] | None = None
        """The last start: an empty text once the worker accepts clients, or why it has failed."""
        self._overdue: asyncio.TimerHandle | None = None
        self._restarts = Restarts()
        self._retry: asyncio.TimerHandle | None = None
        self._relaunching: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The worker's process ID; 0 without a worker."""
        return self._child.pid if self._child is not None else 0

    @property
    def memory(self) -> int:
        """The worker's proportional share (PSS) in bytes; 0 without a worker."""
        return process.memory(self.pid, self._channel.memory_count) if self._channel is not None and self.pid else 0

    @property
    def address(self) -> str:
        """The path of its socket."""
        return self.socket.address(self.path)

    # -- what an operator does

    async def start(self) -> None:
        """Start it, if it is not running. Returns when it accepts clients. Raises a CommandError if it fails."""
        self._check_enabled()
        async with self._turn:
            if self.state in (State.STOPPED, State.FAILED, State.WAITING):
                self._forget_deaths()
                await self._launch()
            attempt = self._attempt
        await self._accepting(attempt)

    async def stop(self) -> None:
        """Stop it: accept no new client, reset the device, remove its socket."""
        async with self._turn:
            await self._end()

    async def retire(self) -> None:
        """Stop it, never to start again."""
        self._retired = True
        await self.stop()

    async def restart(self) -> None:
        """Stop the worker and start another; clients that connect meanwhile wait.

        A socket that has lost its path is made anew. If another server has the path, a CommandError says so, and the
        device goes on as it was.
        """
        self._check_enabled()
        async with self._turn:
            self.socket.open_again(self.path, self.settings)
            self._forget_deaths()
            await self._end_worker()
            await self._launch()
            attempt = self._attempt
        await self._accepting(attempt)

    async def change(self, settings: Device, path: Path, folder: Path) -> None:
        """Use other settings. A stopped device stays stopped, unless they turn its automatic start on."""
        async with self._turn:
            wanted = self.state is not State.STOPPED or (settings.starts and not self.settings.starts)
            old = self.settings, self.path
            if listens(*old) != listens(settings, path) or not settings.enabled:
                await self._end()
            self.settings, self.path, self.folder = settings, path, folder
            self.files = {file: stamp(Path(file)) for file in self.files}
            self._forget_deaths()
            await self._end_worker()
            if not (wanted and settings.enabled):
                self._set(State.STOPPED)
                return
            await self._launch()
            attempt = self._attempt
        await self._accepting(attempt)

    async def set(self, option: str, value: str) -> None:
        """Change an option, until the worker is started again."""
        self.changed = dict(await self.ask("set", option=option, value=value))

    async def ask(self, what: str, timeout: float = ANSWER_TIMEOUT, fds: Sequence[int] = (), **arguments: str) -> Any:
        """Ask the worker. Raises a CommandError if there is none, or if it refuses or does not answer in time."""
        if self._channel is None or self.state is not State.RUNNING:
            hint = f"bellwire start {self.name}" if self.state in (State.STOPPED, State.FAILED) else ""
            raise CommandError(f"{self.name} is not running: it is {self.state}", hint)
        return await self._channel.ask(what, timeout, fds, **arguments)

    async def check(self) -> None:
        """Ping the worker. Kill it if it does not answer; then it is started again."""
        channel, child = self._channel, self._child
        if channel is None or child is None or self.state is not State.RUNNING:
            return
        try:
            await channel.ask("ping", self.daemon.ping_timeout)
        except CommandError as error:
            if self._child is child and self.state is State.RUNNING:
                self._note("hung", messages.HUNG, f"{error}: killing it", logging.ERROR)
                child.kill()

    def outdated(self) -> bool:
        """Whether a Python file of the device has changed since its worker started."""
        return bool(self.edited())

    def edited(self) -> list[str]:
        """The Python files of the device that have changed since its worker started."""
        return [file for file, known in self.files.items() if stamp(Path(file)) != known]

    def order(self, settings: Device, folder: Path, *, trial: bool = False) -> Spawn:
        """The order to the fork server for this device."""
        box = self.box.wanted(settings, self.daemon.worker_users, grouped=not trial)
        return order(self.name, settings, self._plugins, folder, box, trial=trial)

    def _check_enabled(self) -> None:
        if not self.settings.enabled:
            raise CommandError(f"{self.name} is disabled", f"bellwire enable {self.name}")

    # -- the worker's life; all that waits is called with the turn held

    async def _launch(self) -> None:
        if self._retired:
            raise CommandError(f"{self.name} is gone for good")
        loop = asyncio.get_running_loop()
        self._attempt = loop.create_future()
        self.changed = {}
        self._set(State.STARTING)
        self.error = ""  # the last worker's
        try:
            if not self.socket.is_open:  # a restart takes what the worker before it had
                descriptors.demand(NEEDED)
            listener = self.socket.open(self.path, self.settings)
        except CommandError as error:
            self._give_up(str(error))
            return
        try:
            channel = WorkerChannel(self.name, self._heard)
        except CommandError as error:
            self._fell(str(error))
            return
        try:
            child = await self._spawner.spawn(
                self.order(self.settings, self.folder), [listener.fileno(), channel.theirs.fileno()]
            )
        except CommandError as error:
            channel.close()
            self.box.left()
            self._fell(str(error))
            return
        except BaseException:
            channel.close()
            self.box.left()
            self.socket.close()
            self._settle("its start was called off")
            self._set(State.STOPPED)
            raise
        channel.handed_over()
        self._child, self._channel = child, channel
        if not self._attempt.done():  # counted from here: the fork server may have been slow
            self._overdue = loop.call_later(self.daemon.start_timeout, self._too_slow)
        child.ended.add_done_callback(lambda ended: self._ended(child, ended.result()))

    async def _accepting(self, attempt: asyncio.Future[str] | None) -> None:
        """Return when the start has succeeded. Raises a CommandError if it has failed."""
        why = await asyncio.shield(attempt) if attempt is not None else "it was never tried"
        if why:
            raise CommandError(f"{self.name} has not started: {why}")

    def _too_slow(self) -> None:
        self._note("hung", messages.HUNG, f"not ready after {self.daemon.start_timeout:g} s: killing it", logging.ERROR)
        if self._child is not None:
            self._child.kill()

    def _ended(self, child: Child, status: int) -> None:
        if child is not self._child:
            return
        assert self._channel is not None
        self._channel.close()  # its last message says why
        fate = self.box.fate(self.settings)
        self.box.left()
        self._child = self._channel = self.client = None
        if self.state is State.STOPPING:
            self._settle("it was stopped")
            return
        why = fate or how_it_ended(status)
        if status == REFUSED:
            self._give_up(self.error or "it was refused")
        elif status == 0 and self.settings.restart != "always":
            self._settle(why)
            self.socket.close()
            self._note("stopped", messages.STOPPED, why, logging.WARNING)
            self._set(State.STOPPED)
        else:
            self._fell(f"{why}: {self.error}" if self.error else why)

    def _fell(self, why: str) -> None:
        """The worker has died: restart it after a delay, up to the limit."""
        self._note("died", messages.DIED, why, logging.ERROR)
        if self.settings.restart == "no":
            self._give_up(why)
            return
        delay = self._restarts.delay(self.daemon)
        if delay is None:
            self._give_up(f"{why}; {self._restarts.deaths} times in {self.daemon.restart_window:g} s")
            return
        self.error = why
        self._set(State.WAITING)
        self._retry = asyncio.get_running_loop().call_later(delay, self._relaunch)
        self._settle(f"{why}; it will be tried again")

    def _relaunch(self) -> None:
        self._retry = None
        self._relaunching = asyncio.create_task(self._launch_again())

    async def _launch_again(self) -> None:
        async with self._turn:
            if self.state is State.WAITING and not self._retired:  # no start or stop came first
                self.restarts += 1
                self._note("restarted", messages.RESTARTED, "starting it again", logging.WARNING)
                await self._launch()

    def _give_up(self, why: str) -> None:
        """No worker will accept clients: refuse them at once."""
        self.error = why
        self.socket.close()
        self._note("failed", messages.FAILED, why, logging.ERROR)
        self._set(State.FAILED)
        self._settle(why)

    async def _end(self) -> None:
        """Stop the worker, and remove the socket."""
        await self._end_worker()
        self.socket.close()
        self._forget_deaths()
        if self.state is not State.STOPPED:
            self._note("stopped", messages.STOPPED, "stopped", logging.INFO)
            self._set(State.STOPPED)
        self.error = ""

    async def _end_worker(self) -> None:
        """Stop the worker. Kill it if it takes too long."""
        self._forget_retry()
        child, channel = self._child, self._channel
        if child is None or channel is None:
            return
        self._set(State.STOPPING)
        channel.tell("stop")
        timeout = self.daemon.stop_timeout
        await asyncio.wait([child.ended], timeout=timeout)
        if not child.ended.done():
            text = f"it has not stopped within {timeout:g} s: killing it"
            self._note("killed", messages.HUNG, text, logging.ERROR)
            child.kill()
            await asyncio.wait([child.ended], timeout=KILL_TIMEOUT)
        if not child.ended.done():
            self._note("trouble", messages.HUNG, f"process {child.pid} cannot be killed: left alone", logging.ERROR)
        self._ended(child, 0)  # unless that has been said already

    def _forget_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _forget_deaths(self) -> None:
        self._forget_retry()
        self._restarts.forget()

    # -- what the worker says

    def _heard(self, report: Report) -> None:
        kind, fields = report.kind, report.fields
        match kind:
            case "ready":
                if self.state is State.STARTING:
                    self._set(State.RUNNING)
                    self.error = ""
                    self._settle("")
                    self._note("started", messages.STARTED, "accepts clients", logging.INFO)
                return
            case "log":
                self._keep(Line(fields["time"], fields["level"], fields["text"]))
                return
            case "made":
                self.files = {file: known and (known[0], known[1], known[2]) for file, known in fields["files"].items()}
                return
            case "boxed":
                self.box.entered(fields)
                return
            case "denied":
                self._note(kind, messages.DENIED, fields["text"], logging.WARNING)
                return
            case "refused":
                self.error = fields["error"]
                return
            case "crashed":
                self.error = fields["error"]
            case "connected":
                self.client = {**fields, "since": time.time()}
                self._note_client(kind, messages.CLIENT, f"connected: process {fields['pid']}, user {fields['uid']}")
                return
            case "introduced" if self.client is not None:
                self.client["capabilities"] = fields
            case "mapped" if self.client is not None:
                self.client |= fields
            case "left":
                self._note_client(kind, messages.CLIENT_LEFT, f"left: {fields['reason']}")
                self.client = None
                return
            case "trouble":
                self.recent.append((time.time(), fields["text"]))
        self._publish(kind, fields)

    # -- small things

    def _set(self, state: State) -> None:
        if state is not self.state:
            self.state, self.since = state, time.time()

    def _settle(self, why: str) -> None:
        """Finish the last start: successfully, or with the reason ``why``."""
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        if self._attempt is not None and not self._attempt.done():
            self._attempt.set_result(why)
