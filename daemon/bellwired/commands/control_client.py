"""The client of the control socket, for the commands."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from asyncvarlink import VarlinkClientProtocol, VarlinkErrorReply, VarlinkTransport
from asyncvarlink.conversion import ConversionError
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from bellwire.paths import PathError
from bellwire.unix_sockets import check_peer, peer, reached
from bellwired.errors import CommandError
from bellwired.manager.answers import Failed
from bellwired.manager.control import Control
from bellwired.places import SYSTEM_RUNTIME, Places
from bellwired.settings import NAME

Result = TypeVar("Result")
log = logging.getLogger("bellwired")
PATIENCE = 5.0  # seconds for a healthy daemon to introduce itself
LONGEST = 300.0  # for long calls: starting a device, reading the configuration again
AGAIN = 0.05  # between two attempts to reach a daemon
ENDS = 60.0  # for ``bellwire run`` to end, once it has promised that
NOT_RUNNING = "systemctl start bellwired, or run bellwired yourself"
NOT_YOURS = "systemctl --user start bellwired, or run bellwired yourself"
ELSEWHERE = "the system's daemon runs: --system asks it"


class Patient(VarlinkClientProtocol):
    """Hands out all replies that have come, and only then says that the daemon has hung up."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more comes."""
        if self._consumer_queue:  # asyncvarlink hands out one reply a turn of the loop
            asyncio.get_running_loop().call_soon(self.connection_lost, exc)
        else:
            super().connection_lost(exc)


class NoDaemonError(CommandError):
    """No process listens at the control socket."""


@dataclass(frozen=True, slots=True)
class Instance:
    """The daemon to ask. ``timeout``: seconds for an answer and, with ``wait``, for the daemon to be there."""

    places: Places
    timeout: float = LONGEST
    wait: bool = False
    other: Places | None = None
    """Another instance, whose daemon is asked if this one has none."""

    @property
    def asked(self) -> Places:
        """The instance whose daemon is asked."""
        if self.other is None or _listens(self.places.control) or not _listens(self.other.control):
            return self.places
        return self.other

    def hint(self, hint: str) -> str:
        """``hint`` and, if another daemon might have been meant, which one was asked."""
        if self.other is None or not _listens(self.other.control):
            return hint
        asked = self.asked
        told = f"{asked.daemon} was asked" + ("; --system asks the system's" if asked.whose == "user" else "")
        return f"{hint}; {told}" if hint else told


def call(
    instance: Instance, work: Callable[[Any], Awaitable[Result]], name: str | None = None, *, endless: bool = False
) -> Result:
    """Run ``work(daemon)``, where ``daemon`` has the methods of :class:`Control`. A CommandError says what failed.

    What concerns the device ``name`` is asked of the ``bellwire run`` that serves it, if there is one. ``endless``:
    it takes as long as it takes.
    """
    control, who = speaker(instance, name)

    async def talk() -> Result:
        transport, protocol = await _connect(control, instance)
        try:
            async with asyncio.timeout(min(PATIENCE, instance.timeout)):
                await protocol.make_proxy(VarlinkServiceInterface).GetInfo()
            async with asyncio.timeout(None if endless else instance.timeout):
                return await work(protocol.make_proxy(Control))
        except TimeoutError:
            raise CommandError(f"{control}: {who} does not answer", "its log may say why") from None
        except VarlinkErrorReply as error:
            raise explain(error, instance) from None
        except ConversionError as error:
            why = f"{who} answers what this command does not understand: {error.args[0]}"
            raise CommandError(why, "is it of another version?") from None
        except (EOFError, ConnectionError):
            raise CommandError(f"{who} has hung up", "its log says why") from None
        finally:
            transport.close()
            await asyncio.sleep(0)

    return asyncio.run(talk())


def method(instance: Instance, method_name: str, /, **arguments: Any) -> dict[str, Any]:
    """Call one method and return its reply."""

    async def work(daemon: Any) -> dict[str, Any]:
        return dict(await getattr(daemon, method_name)(**arguments) or {})

    return call(instance, work, arguments.get("name"))


def stop(instance: Instance, name: str) -> None:
    """Stop a device, and remove its socket. What serves it in the foreground has ended then, its parent too."""
    pid = _listener(instance.places.control_of(name)) if NAME.fullmatch(name) else 0
    try:
        handle = os.pidfd_open(pid) if pid else -1
    except ProcessLookupError:  # it has ended just now
        handle = -1
    try:
        method(instance, "Stop", name=name)
        patience = min(ENDS, instance.timeout)
        if handle >= 0 and not select.select([handle], [], [], patience)[0]:
            raise CommandError(f"{name} stops, and has not ended within {patience:g} s", f"look at process {pid}")
    finally:
        if handle >= 0:
            os.close(handle)


def all_devices(instance: Instance, **arguments: Any) -> list[dict[str, Any]]:
    """The daemon's, and those that run in the foreground. One of these that cannot be asked hides no other."""

    async def work(daemon: Any) -> list[dict[str, Any]]:
        return list((await daemon.List(**arguments))["devices"])

    found = []
    for name in _by_hand(instance):
        try:
            found += call(instance, work, name)
        except CommandError as error:  # it hangs, is another user's, or has just ended
            log.warning("%s is left out: %s", name, error)
    try:
        found += call(instance, work)
    except NoDaemonError:
        if not found:
            raise
    return sorted(found, key=lambda each: each["name"])


def stream(
    instance: Instance, each: Callable[[dict[str, Any]], None], method_name: str, /, *, endless: bool, **arguments: Any
) -> None:
    """Call ``each`` with every reply, until the daemon ends or the user stops the command."""
    left: BaseException | None = None

    async def work(daemon: Any) -> None:
        nonlocal left
        replies: AsyncIterator[Any] = getattr(daemon, method_name)(**arguments)
        async for reply in replies:
            try:
                each(dict(reply))
            except (BrokenPipeError, SystemExit) as error:  # from print and rich: nobody reads the output
                left = error
                break
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):  # cancel the wait for a reply, or asyncio logs an error
                async for _ in replies:
                    pass

    call(instance, work, arguments.get("name"), endless=endless)
    if left is not None:
        raise left


def speaker(instance: Instance, name: str | None = None) -> tuple[Path, str]:
    """The control socket to speak to, and who answers there: the ``bellwire run`` that serves ``name``, or a daemon."""
    if name is not None and NAME.fullmatch(name) and _listens(instance.places.control_of(name)):
        return instance.places.control_of(name), "bellwire run"
    asked = instance.asked
    return asked.control, asked.daemon


def _listens(path: Path) -> bool:
    """Whether anybody does: one who was killed leaves a socket behind."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.setblocking(False)
        return probe.connect_ex(str(path)) not in (errno.ENOENT, errno.ECONNREFUSED)
    return False


def _listener(path: Path) -> int:
    """The process that has begun to listen, before all that it has forked; 0 if there is none to be seen."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.setblocking(False)
        probe.connect(str(path))
        return peer(probe).pid
    return 0


async def _connect(path: Path, instance: Instance) -> Any:
    """Connect. Tries again as long as the instance allows."""
    deadline = time.monotonic() + instance.timeout if instance.wait else 0
    while True:
        try:
            return await _open(path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if time.monotonic() >= deadline:
                raise _absent(path, error, instance) from None
        except PathError as error:
            raise CommandError(f"{path}: {error.strerror}", error.hint) from None
        except PermissionError:
            hint = "be root, or a member of the control-group"
            raise CommandError(
                f"{path}: you may not use it", f"{hint}; {NOT_YOURS}" if instance.other else hint
            ) from None
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror or error}") from None
        await asyncio.sleep(AGAIN)


async def _open(path: Path) -> tuple[VarlinkTransport, VarlinkClientProtocol]:
    """One attempt. Nothing is said to a listener who may not be trusted."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with reached(path) as address:
            await loop.sock_connect(sock, address)
        check_peer(sock, path)
    except BaseException:
        sock.close()
        raise
    protocol = Patient()
    transport = VarlinkTransport(loop, sock, sock, protocol)
    await asyncio.sleep(0)  # it starts to read
    return transport, protocol


def _by_hand(instance: Instance) -> list[str]:
    """The names of the devices that run in the foreground."""
    places = instance.places
    return [name for name in places.foreground() if NAME.fullmatch(name) and _listens(places.control_of(name))]


def _absent(path: Path, error: OSError, instance: Instance) -> NoDaemonError:
    if there := _by_hand(instance):
        return NoDaemonError(f"{path}: no daemon is running there", f"bellwire run serves {', '.join(there)}")
    if isinstance(error, ConnectionRefusedError):
        return NoDaemonError(f"{path}: the daemon that made this socket is gone", NOT_RUNNING)
    if instance.other is not None:
        return NoDaemonError(f"no daemon is running, neither yours ({path}) nor the system's", NOT_YOURS)
    own = instance.places.whose == "user"
    hint = ELSEWHERE if path.parent != SYSTEM_RUNTIME and _listens(SYSTEM_RUNTIME / path.name) else ""
    return NoDaemonError(f"{path}: no daemon is running there", hint or (NOT_YOURS if own else NOT_RUNNING))


def explain(error: VarlinkErrorReply, instance: Instance) -> CommandError:
    """A daemon's error reply as the error of a command."""
    if error.name == Failed.name:
        told = error.paramstojson()
        return CommandError(str(told.get("message")), instance.hint(str(told.get("hint", ""))))
    if error.name == "org.varlink.service.PermissionDenied":
        hint = instance.hint("be root, or the user that the daemon runs as")
        return CommandError(f"{instance.asked.daemon} does not let you do that", hint)
    return CommandError(f"{instance.asked.daemon} answers {error}")
