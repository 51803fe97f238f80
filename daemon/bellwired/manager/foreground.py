"""The control interface of ``bellwire run``: its one device answers as a daemon's devices do.

The device runs on the main thread. The control interface runs on a second thread, which does what a manager does for a
worker. The two threads use the same socket as a manager and a worker, so the device's loop is the same as in a worker.
Without callers the second thread sleeps, and costs the device nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from bellwired.box.enter import Box
from bellwired.errors import CommandError
from bellwired.listen import Listener
from bellwired.logs import hush_asyncvarlink, stderr_is_the_journal
from bellwired.manager.control_server import Server
from bellwired.manager.life import State
from bellwired.manager.manager import Manager, Reloaded, prepare
from bellwired.manager.tasks import alongside
from bellwired.manager.unit import Unit
from bellwired.places import Places
from bellwired.settings import Device
from bellwired.workers import hand_over
from bellwired.workers.ward import Ward
from bellwired.workers.worker_channel import WorkerChannel

log = logging.getLogger("bellwired")
START = 10.0  # seconds for the thread to start


class Foreground(Unit):
    """A device that a user has started by hand: no command can start it again."""

    def __init__(self, name: str, device: Device, address: str, manager: Manager, box: Box, ward: Ward | None) -> None:
        runtime, daemon = manager.places.runtime, manager.settings.daemon
        super().__init__(
            name,
            device,
            daemon,
            runtime,
            runtime,
            [],
            manager.spawner,
            lambda _, kind, fields: manager.broadcaster.publish(name, kind, fields),
        )
        self.state = State.STARTING
        self._address = address
        self._ward = ward
        if ward is not None:
            self.hand_overs, self.restarts, self.rings = ward.hand_overs, ward.number, ward.rings
            if (client := ward.client) is not None:
                self.client = {**client, "since": time.time()}
        self._channel = channel = WorkerChannel(name, self._heard)
        channel.memory_count = box.memory_count
        self.box.parts = list(box.parts)
        self.channel = channel.theirs.dup()
        """The socket for the device's own loop."""
        self.channel.setblocking(False)
        channel.handed_over()

    @property
    def pid(self) -> int:
        """The process ID of this process."""
        return os.getpid()

    @property
    def address(self) -> str:
        """As ``bellwire run`` has said it."""
        return self._address

    async def start(self) -> None:
        """It runs already."""

    async def stop(self) -> None:
        """End ``bellwire run``."""
        await self.ask("stop")

    async def restart(self) -> None:
        """How it was started is not known here."""
        self._refuse()

    async def move(self, why: str = hand_over.MOVED) -> None:
        """Let another process go on with client and state: the parent starts it."""
        if self._ward is None:
            raise CommandError(f"{self.name} has no parent that could start another process", "it was --no-restart")
        await self.ask("leave")

    async def change(self, *_: Any) -> None:
        """Nothing: the device has no file."""
        self._refuse()

    async def filter(self, action: str, named: str = "", place: str = "") -> list[dict[str, Any]]:
        """As of any device. The parent is told, so that the next process has the same filters."""
        found = await super().filter(action, named, place)
        if self._ward is not None and action != "list":
            self._ward.filtered(self.filters(self.settings))
        return found

    def _has_ring(self, ring: int) -> None:
        if self._ward is not None:
            self._ward.has_ring(ring)
        super()._has_ring(ring)

    def end(self) -> None:
        """The device has ended."""
        if self._channel is not None:
            self._channel.close()

    def _refuse(self) -> NoReturn:
        raise CommandError(
            f"{self.name} runs in the foreground, without the daemon", "start it anew where it was started"
        )

    def _note(self, kind: str, message_id: str, text: str, level: int = logging.INFO) -> None:
        """Store an event and pass it to the listeners. The journal gets it from here, a terminal from the worker.

        The line comes back among the worker's, so it is not stored a second time.
        """
        if stderr_is_the_journal():
            self._log(message_id, text, level)
        self._remember(kind, text)


class Alone(Manager):
    """A manager of one device, without a configuration."""

    @property
    def lends(self) -> str:
        """It can not."""
        return "it serves a device in the foreground"

    async def move(self, name: str) -> None:
        """Let another process go on, whatever the files have become: the parent falls back on the first code."""
        await self.unit(name).move()

    async def reload(self) -> Reloaded:
        """There is nothing to read."""
        raise CommandError("a device in the foreground has no configuration to read again")


class Desk:
    """A thread that serves the control interface at ``control``, for a device that runs on the caller's thread.

    Use it as a block, and run the device in it. The device's loop answers on ``channel``.
    """

    channel: socket.socket

    def __init__(
        self,
        name: str,
        device: Device,
        address: str,
        control: Listener | None,
        box: Box | None = None,
        ward: Ward | None = None,
    ) -> None:
        self._unit = name, device, address
        self._ward = ward
        self._box = box or Box()
        self._control = control
        self._begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, socket.socket]] = Future()
        self._thread = threading.Thread(target=self._run, name="control")

    def __enter__(self) -> Self:
        self._thread.start()
        self._loop, self._end, self.channel = self._begun.result(START)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.channel.close()
        with contextlib.suppress(RuntimeError):  # the thread has failed, and logged it
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self) -> None:
        hush_asyncvarlink()
        try:
            asyncio.run(self._answer())
        except Exception as error:
            if not self._begun.done():
                self._begun.set_exception(error)
                return
            log.exception("the control socket has failed: the device runs on without it")

    async def _answer(self) -> None:
        name, device, address = self._unit
        manager = Alone(Places((), (), self._control.path.parent if self._control else Path()))
        unit = manager.units[name] = Foreground(name, device, address, manager, self._box, self._ward)
        end = asyncio.Event()
        server = Server(manager, self._control.socket, refuses_devices=False) if self._control else None
        if server:
            server.open()
        self._begun.set_result((asyncio.get_running_loop(), end, unit.channel))
        try:
            async with alongside(manager.count):
                await end.wait()
        finally:
            if server:
                await server.close(f"{name} ends")
            unit.end()


def open_control(places: Places, name: str) -> Listener:
    """The control socket of the device ``name`` in the foreground. Raises a CommandError if it cannot be opened."""
    if os.geteuid() or not places.runtime.is_dir():  # root may use the folder of the system's daemon
        prepare(places.runtime)
    return Listener(places.control_of(name))
