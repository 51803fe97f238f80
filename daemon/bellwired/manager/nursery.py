"""The manager's end of the fork server."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from bellwired.errors import CommandError
from bellwired.manager import process, wire
from bellwired.manager.wire import Answer, Ask, Exited, Spawn, Spawned

log = logging.getLogger("bellwired")
PATIENCE = 10.0


class Nursery:
    """Starts the fork server, and again if it should die; with it die all workers, and ``lost`` is called."""

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._spawned: list[asyncio.Future[tuple[int, int]]] = []
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._exits: dict[int, Callable[[int], None]] = {}
        self._number = 0

    def open(self) -> None:
        """Start it."""
        ours, theirs = wire.pair()
        ours.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bellwired.manager.forkserver", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=process.environment(),
                start_new_session=True,
            )
        self._sock = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._readable)

    async def spawn(self, spawn: Spawn, fds: list[int], exited: Callable[[int], None]) -> tuple[int, int]:
        """Fork a worker: its pid and a pidfd, which is the caller's. ``exited`` hears its status later."""
        future: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        if self._sock is None:
            raise CommandError("the fork server is not there")
        self._spawned.append(future)
        await self._send(spawn, fds)
        pid, handle = await asyncio.wait_for(future, PATIENCE)
        self._exits[pid] = exited
        return pid, handle

    async def ping(self) -> bool:
        """Whether it answers."""
        self._number += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pings[self._number] = future
        try:
            await self._send(Ask(self._number, "ping"), [])
            await asyncio.wait_for(future, PATIENCE)
        except (OSError, TimeoutError, CommandError):
            return False
        finally:
            self._pings.pop(self._number, None)
        return True

    def close(self) -> None:
        """End it, and every worker that is left."""
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        if self._process is not None:
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    async def _send(self, message: Spawn | Ask, fds: list[int]) -> None:
        """Send as soon as there is room."""
        deadline = time.monotonic() + PATIENCE
        while self._sock is not None and time.monotonic() < deadline:
            try:
                wire.send(self._sock, message, fds)
                return
            except BlockingIOError:
                await asyncio.sleep(0.01)
        raise CommandError("the fork server does not listen")

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            received = wire.receive(self._sock)
        except BlockingIOError:
            return
        except ConnectionResetError:
            received = None
        if received is None:
            self._died()
            return
        message, fds = received
        if isinstance(message, Spawned):
            self._answer_spawn(message, fds)
        elif isinstance(message, Exited):
            exited = self._exits.pop(message.pid, None)
            if exited is not None:
                exited(message.status)
        elif isinstance(message, Answer):
            ping = self._pings.get(message.number)
            if ping is not None and not ping.done():
                ping.set_result(None)

    def _answer_spawn(self, message: Spawned, fds: list[int]) -> None:
        future = self._spawned.pop(0)
        if future.done():
            for fd in fds:
                os.close(fd)
        elif message.pid:
            future.set_result((message.pid, fds[0]))
        else:
            future.set_exception(CommandError(f"cannot fork a worker: {message.error}"))

    def _died(self) -> None:
        log.error("the fork server has died, and its workers with it; starting all of them again")
        self.close()
        exits, self._exits = self._exits, {}
        for future in self._spawned:
            if not future.done():
                future.set_exception(CommandError("the fork server has died"))
        self._spawned.clear()
        self.open()
        for exited in exits.values():
            exited(-9)
        self._lost()
