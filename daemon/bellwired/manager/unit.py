"""One device under the manager: its listener, its worker, and what to do when that ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

from bellwired.errors import CommandError
from bellwired.listen import Listener
from bellwired.manager import messages, wire
from bellwired.manager.nursery import Nursery
from bellwired.manager.settings import Daemon, Device
from bellwired.manager.wire import Answer, Ask, Event, Spawn
from bellwired.manager.worker import REFUSED

log = logging.getLogger("bellwired")
READY_TIMEOUT = 60.0
RECENT = 20


class State(StrEnum):
    """Where a device is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    """For its next restart."""
    STOPPING = "stopping"
    FAILED = "failed"


class Unit:
    """The device ``name``. ``tell`` hears every change."""

    def __init__(
        self,
        name: str,
        settings: Device,
        daemon: Daemon,
        path: Path,
        plugins: list[str],
        nursery: Nursery,
        tell: Callable[[Unit, str, dict[str, Any]], None],
    ) -> None:
        self.name = name
        self.settings = settings
        self.daemon = daemon
        self.path = path
        self.state = State.STOPPED
        self.since = time.time()
        self.pid = 0
        self.restarts = 0
        self.error = ""
        self.client: dict[str, Any] | None = None
        self.recent: deque[tuple[float, str]] = deque(maxlen=RECENT)
        self.given: socket.socket | None = None
        """A listener from the service manager, which is used in place of one of our own."""
        self._plugins = plugins
        self._nursery = nursery
        self._tell = tell
        self._listener: Listener | None = None
        self._handle = -1
        self._channel: socket.socket | None = None
        self._number = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._settled = asyncio.Event()  # running, or not going to be
        self._ended = asyncio.Event()
        self._ended.set()
        self._deaths: deque[float] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self._starting: asyncio.Task[None] | None = None

    # -- what an operator does

    async def start(self) -> None:
        """Start it, if it is not running; returns when it accepts clients. A CommandError says why it does not."""
        if self.state in (State.STOPPED, State.FAILED, State.WAITING):
            self._cancel_retry()
            self._deaths.clear()
            await self._launch()
        await asyncio.wait_for(self._settled.wait(), READY_TIMEOUT)
        if self.state is not State.RUNNING:
            raise CommandError(f"{self.name} has not started: {self.error or self.state}")

    async def stop(self) -> None:
        """Stop it in order: no new client, the device reset, its socket removed."""
        await self._end()
        self._close_listener()
        self._set(State.STOPPED)

    async def restart(self) -> None:
        """Stop the worker and start another; clients that connect meanwhile wait."""
        await self._end()
        self._set(State.STOPPED)
        await self.start()

    async def ask(self, what: str, timeout: float = 5.0) -> Any:
        """Ask the worker. A CommandError when it is not there, refuses, or does not answer in time."""
        if self._channel is None:
            raise CommandError(f"{self.name} is not running", f"bellwire start {self.name}")
        self._number += 1
        number = self._number
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            wire.send(self._channel, Ask(number, what))
            return await asyncio.wait_for(future, timeout)
        except TimeoutError:
            raise CommandError(f"{self.name} has not answered within {timeout:g} s") from None
        except OSError as error:
            raise CommandError(f"{self.name} cannot be asked: {error.strerror}") from None
        finally:
            self._answers.pop(number, None)

    async def check(self) -> None:
        """Ping it; kill it when it does not answer, whereupon it is started again."""
        if self.state is not State.RUNNING:
            return
        pid = self.pid
        try:
            await self.ask("ping", self.daemon.ping_timeout)
        except CommandError as error:
            if self.pid == pid and self.state is State.RUNNING:
                self._note("hung", messages.HUNG, f"{error}: killing it", logging.ERROR)
                self.kill()

    def kill(self) -> None:
        """SIGKILL, to the very process that is meant."""
        if self._handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    # -- the worker's life

    async def _launch(self) -> None:
        self._settled.clear()
        self._ended.clear()
        self._set(State.STARTING)
        try:
            await self._fork()
        except (CommandError, TimeoutError) as error:
            self._give_up(str(error))
            self._ended.set()

    async def _fork(self) -> None:
        listener = self._open_listener()
        ours, theirs = wire.pair()
        ours.setblocking(False)
        self._channel = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._readable)
        settings = self.settings
        spawn = Spawn(
            name=self.name,
            device=settings.device,
            options=dict(settings.options),
            log_level=settings.log_level,
            io_fd_entry=settings.io_fd_entry,
            plugins=self._plugins,
        )
        with theirs:
            try:
                self.pid, self._handle = await self._nursery.spawn(
                    spawn, [listener.fileno(), theirs.fileno()], self._exited
                )
            except BaseException:
                self._close_channel()
                raise

    def _exited(self, status: int) -> None:
        while self._channel is not None and self._read():
            pass  # what it said last tells why
        self._close_channel()
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        self.pid, self.client = 0, None
        self._ended.set()
        if self.state is State.STOPPING:
            return
        why = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        if status == REFUSED:
            self._give_up(self.error or "it was refused")
        elif self.settings.restart == "always" or (self.settings.restart == "on-failure" and status != 0):
            self._note("died", messages.DIED, f"its worker {why}", logging.ERROR)
            self._retry_later(why)
        elif status == 0:
            self._set(State.STOPPED)
            self._settled.set()
        else:
            self._give_up(f"its worker {why}")

    def _retry_later(self, why: str) -> None:
        now, daemon = time.monotonic(), self.daemon
        self._deaths.append(now)
        while self._deaths and now - self._deaths[0] > daemon.restart_window:
            self._deaths.popleft()
        count = len(self._deaths)
        if count > daemon.restart_limit:
            self._give_up(f"its worker {why}, {count} times in {daemon.restart_window:g} s")
            return
        delay = min(daemon.restart_delay_max, daemon.restart_delay * 2.0 ** (count - 1))
        self.error = f"its worker {why}"
        self._set(State.WAITING)
        self._retry = asyncio.get_running_loop().call_later(delay, self._relaunch)

    def _relaunch(self) -> None:
        self._retry = None
        self.restarts += 1
        self._note("restarted", messages.RESTARTED, "starting it again", logging.WARNING)
        self._starting = asyncio.ensure_future(self._launch())

    def _give_up(self, why: str) -> None:
        """No worker will come: whoever connects shall hear so at once."""
        self.error = why
        self._close_listener()
        self._note("failed", messages.FAILED, why, logging.ERROR)
        self._set(State.FAILED)
        self._settled.set()

    async def _end(self) -> None:
        """Stop the worker, by force if need be."""
        self._cancel_retry()
        if self._starting is not None:
            await self._starting
        if not self._ended.is_set():
            self._set(State.STOPPING)
            with contextlib.suppress(CommandError):
                await self.ask("stop")
            try:
                await asyncio.wait_for(self._ended.wait(), self.daemon.stop_timeout)
            except TimeoutError:
                self._note("killed", messages.HUNG, "it does not stop: killing it", logging.ERROR)
                self.kill()
                await self._ended.wait()
            self._note("stopped", messages.STOPPED, "stopped", logging.INFO)

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    # -- what the worker says

    def _readable(self) -> None:
        self._read()

    def _read(self) -> bool:
        """Take one message; False when there is none."""
        assert self._channel is not None
        try:
            received = wire.receive(self._channel)
        except (BlockingIOError, ConnectionResetError):
            return False
        if received is None:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            return False
        message = received[0]
        if isinstance(message, Answer):
            self._answered(message)
        elif isinstance(message, Event):
            self._heard(message.kind, message.fields)
        return True

    def _answered(self, answer: Answer) -> None:
        future = self._answers.get(answer.number)
        if future is None or future.done():
            return
        if answer.error:
            future.set_exception(CommandError(f"{self.name}: {answer.error}"))
        else:
            future.set_result(answer.value)

    def _heard(self, kind: str, fields: dict[str, Any]) -> None:
        match kind:
            case "ready":
                self._set(State.RUNNING)
                self.error = ""
                self._settled.set()
                self._note("started", messages.STARTED, "accepts clients", logging.INFO)
                return
            case "refused":
                self.error = fields["error"]
                return
            case "connected":
                self.client = {**fields, "since": time.time()}
                self._note(kind, messages.CLIENT, f"client connected: process {fields['pid']}, user {fields['uid']}")
                return
            case "introduced" if self.client is not None:
                self.client["capabilities"] = fields
            case "mapped" if self.client is not None:
                self.client |= fields
            case "left":
                self.client = None
                self._note(kind, messages.CLIENT_LEFT, f"client left: {fields['reason']}")
                return
            case "trouble":
                self.recent.append((time.time(), fields["text"]))
        self._tell(self, kind, fields)

    # -- small things

    def _set(self, state: State) -> None:
        if state is not self.state:
            self.state, self.since = state, time.time()

    def _note(self, kind: str, message_id: str, text: str, level: int = logging.INFO) -> None:
        """Log, remember, and tell the world."""
        log.log(level, "%s: %s", self.name, text, extra={"MESSAGE_ID": message_id, "BELLWIRE_DEVICE": self.name})
        self.recent.append((time.time(), text))
        self._tell(self, kind, {"text": text})

    def _open_listener(self) -> socket.socket:
        if self.given is not None:
            return self.given
        if self._listener is None:
            settings = self.settings
            self._listener = Listener(self.path, int(settings.mode, 8), settings.owner, settings.group)
        return self._listener.socket

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _close_channel(self) -> None:
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None
        for future in self._answers.values():
            if not future.done():
                future.set_exception(CommandError(f"{self.name} has ended"))
