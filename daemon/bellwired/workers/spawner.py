"""The manager's side of the fork server: starts it, restarts it, has it fork workers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass

import msgspec

from bellwired.box.groups import Groups
from bellwired.box.users import Users
from bellwired.errors import CommandError
from bellwired.workers import wire
from bellwired.workers.launch import Forked, ForkServer, fork_server
from bellwired.workers.wire import Answer, Ask, Exited, Spawn, Spawned, WireError

log = logging.getLogger("bellwired")
PATIENCE = 10.0
GRACE = 1.0  # seconds from a worker's end to the fork server's report of its status
KILLED = -int(signal.SIGKILL)  # the status of a worker whose real status is unknown
SHORT_LIFE = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.05, 30.0


@dataclass(eq=False, slots=True)
class Child:
    """A worker process. ``ended`` becomes its status as subprocess has it; then ``handle``, its pidfd, is closed."""

    pid: int
    handle: int
    ended: asyncio.Future[int]
    orphan: bool = False
    """Its fork server is gone: its status will stay unknown."""

    def kill(self) -> None:
        """SIGKILL, to the very process that is meant."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, signal.SIGKILL)


class Spawner:
    """Starts the fork server, and restarts it if it dies. All workers die with it."""

    def __init__(self, groups: Groups | None = None) -> None:
        self.groups = groups or Groups()
        """The control groups of the devices. The fork server is in the manager's."""
        self.users = Users()
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._sock: socket.socket | None = None
        self._since = 0.0
        self._delay = FIRST_DELAY
        self._reopening: asyncio.TimerHandle | None = None
        self._numbers = itertools.count(1)
        self._spawned: dict[int, asyncio.Future[Child]] = {}
        self._asked: dict[int, asyncio.Future[bool]] = {}
        self._children: dict[int, Child] = {}

    @property
    def pid(self) -> int:
        """The process ID of the fork server; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def open(self, early: ForkServer | None = None) -> None:
        """Start the fork server, or use one that was started ``early``. Raises an OSError if that fails."""
        self._process, self._sock = early or fork_server()
        self._since = time.monotonic()
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._readable)

    async def spawn(self, order: Spawn, fds: list[int]) -> Child:
        """Have a worker forked, which inherits ``fds``. Raises a CommandError if that fails."""
        number = next(self._numbers)
        future: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._spawned[number] = future
        try:
            async with asyncio.timeout(PATIENCE):
                await self._send(msgspec.structs.replace(order, number=number), fds)
                return await asyncio.shield(future)
        except BaseException as error:
            future.add_done_callback(_kill)  # should it come too late
            if isinstance(error, TimeoutError):
                raise CommandError(f"the fork server has not answered within {PATIENCE:g} s") from None
            if isinstance(error, OSError):
                raise CommandError(f"the fork server cannot be asked: {error.strerror}") from None
            raise

    async def ping(self) -> bool:
        """Whether the fork server answers a ping."""
        return await self._ask("ping", PATIENCE) is not None

    async def has_stopped(self, child: Child) -> bool:
        """Whether a signal has stopped ``child``. False if the fork server does not answer soon."""
        return bool(await self._ask("stopped", GRACE, pid=str(child.pid)))

    async def _ask(self, what: str, patience: float, **arguments: str) -> bool | None:
        """The fork server's answer; None if none comes within ``patience`` seconds."""
        number = next(self._numbers)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            async with asyncio.timeout(patience):
                await self._send(Ask(number, what, arguments), [])
                return await future
        except OSError:  # TimeoutError is one
            return None
        finally:
            del self._asked[number]

    async def close(self) -> None:
        """End the fork server and all remaining workers."""
        if self._reopening is not None:
            self._reopening.cancel()
        self._hang_up()
        server, self._process = self._process, None
        if server is not None:
            if not await _over(server.pid, PATIENCE):
                server.kill()
            server.wait()
        for child in list(self._children.values()):
            self._finish(child, KILLED)
        self.groups.close()

    async def _send(self, message: Spawn | Ask, fds: list[int]) -> None:
        """Send once the fork server runs and its socket has room. The caller sets the deadline."""
        while True:
            if self._sock is not None:
                with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it has died: another one starts
                    wire.send(self._sock, message, fds)
                    return
            await asyncio.sleep(0.01)

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            received = wire.receive(self._sock)
        except BlockingIOError:
            return
        except WireError as error:
            log.error("the fork server talks nonsense: %s", error)
            received = None
        if received is None:
            self._died()
            return
        message, fds = received
        if isinstance(message, Spawned):
            self._born(message, fds)
        elif isinstance(message, Exited):
            child = self._children.get(message.pid)
            if child is not None:
                self._finish(child, message.status)
        elif isinstance(message, Answer):
            asked = self._asked.get(message.number)
            if asked is not None and not asked.done():
                asked.set_result(bool(message.value))

    def _born(self, message: Spawned, fds: list[int]) -> None:
        future = self._spawned.pop(message.number)
        if not message.pid:
            future.set_exception(CommandError(f"cannot fork a worker: {message.error}"))
            return
        if not fds:  # it ends by itself when its control socket closes
            future.set_exception(CommandError("cannot watch another worker: too many open files"))
            return
        loop = asyncio.get_running_loop()
        child = self._children[message.pid] = Child(message.pid, fds[0], loop.create_future())
        loop.add_reader(child.handle, self._seen_dead, child)
        future.set_result(child)

    def _seen_dead(self, child: Child) -> None:
        """Wait for the fork server's report of a worker's status, unless it hangs or has gone."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(child.handle)
        if child.orphan:
            self._finish(child, KILLED)
        else:
            loop.call_later(GRACE, self._finish, child, KILLED)

    def _finish(self, child: Child, status: int) -> None:
        if child.ended.done():
            return
        del self._children[child.pid]
        asyncio.get_running_loop().remove_reader(child.handle)
        os.close(child.handle)
        child.ended.set_result(status)

    def _died(self) -> None:
        """Start another fork server, with a delay, so that short-lived ones do not make a busy loop."""
        self._hang_up()
        assert self._process is not None
        self._process.kill()  # it may have closed its socket only
        status = self._process.wait()
        self._process = None
        if time.monotonic() - self._since > SHORT_LIFE:
            self._delay = FIRST_DELAY
        log.error("the fork server has died with status %d, and its workers with it; starting another", status)
        for child in self._children.values():
            child.orphan = True
            child.kill()
        waiting, self._spawned = self._spawned, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(CommandError("the fork server has died"))
        self._open_later()

    def _open_later(self) -> None:
        self._reopening = asyncio.get_running_loop().call_later(self._delay, self._reopen)
        self._delay = min(LONGEST_DELAY, 2 * self._delay)

    def _reopen(self) -> None:
        """Start it, and try again until that works: processes or descriptors may be exhausted for a while."""
        self._reopening = None
        try:
            self.open()
        except OSError as error:
            log.error("the fork server cannot be started: %s; trying again in %g s", error.strerror, self._delay)
            self._open_later()

    def _hang_up(self) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None


async def _over(pid: int, timeout: float) -> bool:
    """Wait for a process's end (it need not be a child). False if it does not end within ``timeout`` seconds."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        async with asyncio.timeout(timeout):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(handle)
        os.close(handle)
    return True


def _kill(born: asyncio.Future[Child]) -> None:
    if not born.cancelled() and born.exception() is None:
        born.result().kill()
