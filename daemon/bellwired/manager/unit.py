"""One device under the manager: its listener, its worker, and what to do when that ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bellwire.serve.worker import RECOVERING, TRYING
from bellwired import messages
from bellwired.errors import CommandError
from bellwired.manager import descriptors
from bellwired.manager.boxed import Boxed
from bellwired.manager.filtered import Filtered
from bellwired.manager.kept import Kept
from bellwired.manager.life import Restarts, State, how_it_ended
from bellwired.manager.order import listens, order
from bellwired.manager.watched import Watched
from bellwired.settings import Daemon, Device
from bellwired.sources import stamp
from bellwired.workers import hand_over
from bellwired.workers.spawner import Child, Spawner
from bellwired.workers.wire import MOVED, REFUSED, Spawn
from bellwired.workers.worker_channel import WorkerChannel

log = logging.getLogger("bellwired")
NEEDED = 6  # descriptors: the listener, both ends of the channel (one is closed again), the worker's pidfd, its box
KILL_TIMEOUT = 10.0  # for the kernel to end what was killed: disk wait may hold it up


class Unit(Filtered, Kept):
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
        super().__init__(
            name, Boxed(name, spawner.groups, spawner.users), lambda kind, fields: tell(self, kind, fields)
        )
        self.settings = settings
        self.daemon = daemon
        self.path = path
        self.folder = folder
        """The folder of its file: relative paths start there."""
        self.restarts = 0
        self.kept = ""
        """Why the last reload has not used its settings."""
        self._watched = Watched(self.holder, self._hangs)
        self._plugins = plugins
        self._spawner = spawner
        self._turn = asyncio.Lock()
        self._child: Child | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._restarts = Restarts()
        self._moved = hand_over.MOVED
        self._retry: asyncio.TimerHandle | None = None
        self._relaunching: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The worker's process ID; 0 without a worker."""
        return self._child.pid if self._child is not None else 0

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

    async def retire(self, *, keep: bool = False) -> None:
        """Stop it, never to start again. With ``keep``, the next daemon goes on with its client, if it has one."""
        self._retired = True
        if keep and self.goes_on:
            await self.leave()
            self._leave_behind()
        else:
            await self.stop()
        self.rings.close()

    async def leave(self) -> None:
        """End the worker so that another one can go on with the client. None is started until :meth:`take_back`."""
        self._retired = True
        async with self._turn:
            self._forget_retry()
            if not self.holder.holds:
                await self._end_worker()
                self._set(State.STOPPED)
            elif self._child is not None and self._channel is not None:
                self._channel.tell("leave")
                await self._await_end(self._child)

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

    async def move(self, why: str = hand_over.MOVED) -> None:
        """Have another worker go on with client and state. Returns when it serves. A CommandError if it fails."""
        async with self._turn:
            self._moved = why
            await self._watched.answered(self.ask("leave"))
            if (child := self._child) is not None:
                await self._await_end(child)
        if self._relaunching is not None:
            await asyncio.shield(self._relaunching)
        await self._accepting(self._attempt)

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

    async def check(self) -> None:
        """Ping the worker. Kill it if it does not answer; then it is started again."""
        channel, child = self._channel, self._child
        if channel is None or child is None or self.state is not State.RUNNING:
            return
        try:
            await channel.ask("ping", self.daemon.ping_timeout)
        except CommandError as error:
            if not channel.over and self._child is child and self.state is State.RUNNING:
                self._note("hung", messages.HUNG, f"{error}: killing it", logging.ERROR)
                child.kill()

    def order(self, settings: Device, folder: Path, *, trial: bool = False, succeeds: bool = False) -> Spawn:
        """The order to the fork server for this device."""
        box = self.box.wanted(settings, self.daemon.worker_users, grouped=not trial)
        filters = self.filters(settings)
        left = succeeds and (self._restarts.stuck or self.holder.has(TRYING, RECOVERING))
        return order(self.name, settings, self._plugins, folder, box, filters, trial, succeeds=succeeds, as_left=left)

    def _check_enabled(self) -> None:
        if not self.settings.enabled:
            raise CommandError(f"{self.name} is disabled", f"bellwire enable {self.name}")

    # -- the worker's life; all that waits is called with the turn held

    async def _launch(self) -> None:
        if self._retired:
            raise CommandError(f"{self.name} is gone for good")
        loop = asyncio.get_running_loop()
        self._attempt = loop.create_future()
        self.changed, self.over, self.old_code = {}, False, ""
        self._set(State.STARTING)
        self.error = ""  # the last worker's
        try:
            self._deposit.check()
            if not self.socket.is_open:  # a restart takes what the worker before it had
                descriptors.demand(NEEDED)
            listener = self.socket.open(self.path, self.settings)
        except CommandError as error:
            self._give_up(str(error))
            return
        try:
            channel = WorkerChannel(self.name, self._heard, self._watched.heard, stored=self._deposit.used)
        except CommandError as error:
            self._fell(str(error))
            return
        self._deposit.open(self.holder, channel.ours)
        succeeds = self.holder.holds
        self._channel = channel  # it may be ready before the fork server's answer is read
        try:
            child = await self._spawner.spawn(
                self.order(self.settings, self.folder, succeeds=succeeds),
                [listener.fileno(), channel.theirs.fileno()],
            )
        except CommandError as error:
            self._not_launched(channel)
            self._fell(str(error))
            return
        except BaseException:
            self._not_launched(channel)
            self.socket.close()
            self._settle("its start was called off")
            self._set(State.STOPPED)
            raise
        channel.handed_over()
        if succeeds:
            channel.bequeath(self.holder.bequest(hung=self._restarts.hung))
        self._child = child
        if not self._attempt.done():  # counted from here: the fork server may have been slow
            self._overdue = loop.call_later(self.daemon.start_timeout, self._too_slow)
        child.ended.add_done_callback(lambda ended: self._ended(child, ended.result()))

    def _not_launched(self, channel: WorkerChannel) -> None:
        self._channel = None
        channel.close()
        self._deposit.worker_ended()
        self.box.left()

    async def _accepting(self, attempt: asyncio.Future[str] | None) -> None:
        """Return when the start has succeeded. Raises a CommandError if it has failed."""
        why = await asyncio.shield(attempt) if attempt is not None else "it was never tried"
        if why:
            raise CommandError(f"{self.name} has not started: {why}")

    def _too_slow(self) -> None:
        self._note("hung", messages.HUNG, f"not ready after {self.daemon.start_timeout:g} s: killing it", logging.ERROR)
        if self._child is not None:
            self._child.kill()

    def _taking_over(self) -> None:
        if self._channel is not None:
            self._watched.begin(self._channel, self.settings.hang_timeout)

    def _tell_ready(self) -> None:
        super()._tell_ready()
        self._restarts.served()
        self._taking_over()
        self._keeping = asyncio.create_task(self.keep_ring())

    async def _hangs(self, seconds: float) -> None:
        """The worker has got on with nothing for so long."""
        child = self._child
        stopped = child is not None and await self._spawner.has_stopped(child)
        if child is not None and child is self._child and self.state in (State.STARTING, State.RUNNING):
            self._restarts.hung = not stopped
            self.error = f"{'a signal had stopped it' if stopped else 'it hung'} for {seconds:.1f} s"
            self._note("hung", messages.HUNG, f"{self.error}: killing it", logging.ERROR)
            child.kill()

    def _ended(self, child: Child, status: int) -> None:
        if child is not self._child:
            return
        assert self._channel is not None
        self._watched.end()
        self._channel.close()  # its last message says why
        self._deposit.worker_ended()
        fate = self.box.fate(self.settings)
        self.box.left()
        self._child = self._channel = None
        self.rings.worker_ended()
        refused = status == REFUSED and not self.patient  # its files may be mended while a client waits
        if self.state is State.STOPPING or (self.over and status == 0) or refused:
            self._leave_client()
        if self.state is State.STOPPING:
            self._settle("it was stopped")
            return
        why = fate or how_it_ended(status)
        if self.over and status == MOVED and self.holder.holds:
            self.hand_overs.begin(self._moved)
            self._set(State.WAITING)
            self._relaunch()
        elif refused:
            self._give_up(self.error or "it was refused")
        elif self.over and status == 0 and self.settings.restart != "always":
            self._settle(why)
            self.socket.close()
            self._deposit.close(self.holder)
            self._note("stopped", messages.STOPPED, why, logging.WARNING)
            self._set(State.STOPPED)
        else:
            self._fell(f"{why}: {self.error}" if self.error else why)

    def _fell(self, why: str) -> None:
        """The worker has died: restart it after a delay, up to the limit."""
        self._note("died", messages.DIED, why, logging.ERROR)
        self._restarts.unready += self.state is State.STARTING
        if self.settings.restart == "no":
            self._give_up(why)
            return
        if self.holder.holds:
            self.hand_overs.begin(why)
        else:
            self._leave_client()
        served = time.time() - self.since if self.state is State.RUNNING else 0.0
        delay = self._restarts.delay(self.daemon, served=served if self.holder.holds else None)
        if delay is None:
            self._give_up(f"{why}; {self._restarts.deaths} times in {self.daemon.restart_window:g} s")
            return
        self.error = why
        self._set(State.WAITING)
        if delay:
            self._retry = asyncio.get_running_loop().call_later(delay, self._relaunch)
        else:
            self._relaunch()
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
        self._leave_client()
        if not self._deposit.refusal:
            self._deposit.close(self.holder)
        self._note("failed", messages.FAILED, why, logging.ERROR)
        self._set(State.FAILED)
        self._settle(why)

    async def _end(self) -> None:
        """Stop the worker, and remove the socket."""
        await self._end_worker()
        self.socket.close()
        self._deposit.close(self.holder)
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
            self._leave_client()
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

    async def _await_end(self, child: Child) -> None:
        """Wait for the worker's end. Kill it if it takes too long."""
        await asyncio.wait([child.ended], timeout=self.daemon.stop_timeout)
        child.kill()  # unless it has ended
        await asyncio.wait([child.ended], timeout=KILL_TIMEOUT)

    def _forget_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _forget_deaths(self) -> None:
        self._forget_retry()
        self._restarts.forget()
