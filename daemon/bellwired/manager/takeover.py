"""``bellwired --takeover``: a new daemon gets what a running one holds, and the running one ends.

The new daemon has a socket of its own in the runtime folder, and calls the running one by its control socket. That one
ends its workers, sends the parcels and the listening sockets, and waits. The new one starts workers, and says so when
all clients are served. If it ends without that word, the old one reads the parcels, and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from pathlib import Path

import msgspec
from msgspec import Struct

from bellwire.unix_sockets import Bound, connect, peer
from bellwired.errors import CommandError
from bellwired.manager.answers import INTERFACE
from bellwired.manager.fd_store import EXIT, NAME, FdStore, Named
from bellwired.manager.life import State
from bellwired.manager.manager import Manager
from bellwired.manager.tasks import a_few_at_once
from bellwired.workers import wire
from bellwired.workers.wire import WireError

PATIENCE = 60.0  # seconds for the other daemon's next word
BATCH = 64

log = logging.getLogger("bellwired")


class Gift(Struct, tag=True):
    """Old to new: descriptors come, with these names. A listening socket has the device and inode of its path."""

    names: list[Named]
    last: bool


class Refused(Struct, tag=True):
    """Old to new: there will be nothing."""

    why: str


class Here(Struct, tag=True):
    """New to old, first: the pidfd of the new one's fork server comes. With its end, the new workers have ended."""


class Taken(Struct, tag=True):
    """New to old: all clients are served."""


_decoder: msgspec.json.Decoder[Here | Gift | Refused | Taken] = msgspec.json.Decoder(Here | Gift | Refused | Taken)


class Takeover:
    """The new daemon's side, on a socket to the old one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.given: dict[str, tuple[socket.socket, tuple[int, int]]] = {}
        """What was given, by name, with what identifies the path of a listening socket."""
        self._awaited: set[str] = set()

    def note(self, manager: Manager) -> None:
        """Note of which devices there is a client: all of these are to run in the end.

        A CommandError if there is no usable file for one.
        """
        parts = (NAME.fullmatch(name) for name in self.given)
        self._awaited = {part[3] for part in parts if part is not None and part[2] == EXIT}
        if unknown := sorted(self._awaited - manager.settings.devices.keys()):
            raise CommandError(
                f"there is no usable file for {', '.join(unknown)}, which has a client",
                "give the flags of the daemon that runs, or stop the device there; that daemon goes on",
            )

    async def finish(self, manager: Manager, store: FdStore) -> None:
        """Tell the old daemon that it can end, and wait for its end. A CommandError if a client is not served."""
        for unit in manager.units.values():
            if unit.state is not State.RUNNING and unit.name in self._awaited:
                raise CommandError(
                    f"{unit.name} does not go on with its client: {unit.error or unit.state}",
                    "the daemon that ran before goes on",
                )
        with contextlib.suppress(OSError):  # it has ended already
            wire.send(self._sock, Taken())
        store.shared = False
        for unit in manager.units.values():
            unit.socket.keep()
        try:
            await _next(self._sock)
        except CommandError as error:
            log.warning("the daemon that ran before does not end: %s", error)
        self._sock.close()


async def take(manager: Manager, server: int) -> Takeover:
    """Have the running daemon hand over, to workers of the fork server ``server``. A CommandError if it does not."""
    path = manager.places.runtime / f".takeover-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            bound = Bound(listener, path, mode=0o600)
            listener.listen(1)
        except OSError as error:
            raise CommandError(f"{path}: cannot make the socket: {error.strerror}") from None
        try:
            await asyncio.to_thread(_call, manager, path)
            sock = await _accepted(listener)
        finally:
            bound.remove()
    takeover = Takeover(sock)
    handle = os.pidfd_open(server)
    try:
        wire.send(sock, Here(), [handle])
        while True:
            found = await _next(sock)
            message, fds = found or (Taken(), [])
            if isinstance(message, Taken | Here):
                raise CommandError("the running daemon has ended, and has handed nothing over to this one")
            if isinstance(message, Refused):
                raise CommandError(f"the running daemon does not hand over: {message.why}")
            if len(fds) != len(message.names):
                wire.close(fds)
                raise CommandError("descriptors were lost: too many open files")
            for (name, *ids), fd in zip(message.names, fds, strict=True):
                takeover.given[name] = socket.socket(fileno=fd), (ids[0], ids[1])
            if message.last:
                takeover.note(manager)
                return takeover
    except WireError as error:
        sock.close()
        raise CommandError(f"the running daemon is not understood: {error}", "is it of another version?") from None
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(handle)


async def give(manager: Manager, path: Path) -> None:
    """Hand over to the daemon that listens at ``path``. If it does not take what it gets, go on."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            connect(sock, path)
            sock.setblocking(False)
            if peer(sock).uid not in (0, os.geteuid()):
                raise CommandError(f"{peer(sock)} listens there, who is not this daemon's user")
            async with manager.turn:
                await _give(manager, sock)
    except (OSError, CommandError, WireError) as error:
        log.error("not handed over to another daemon: %s", error)


async def _give(manager: Manager, sock: socket.socket) -> None:
    if manager.lends:
        wire.send(sock, Refused(manager.lends))
        raise CommandError(manager.lends)
    message, handles = await _next(sock) or (None, [])
    if not isinstance(message, Here) or len(handles) != 1:
        wire.close(handles)
        raise CommandError("it has not said who it is")
    try:
        await _hand_over(manager, sock, handles[0])
    finally:
        wire.close(handles)


async def _hand_over(manager: Manager, sock: socket.socket, server: int) -> None:
    log.warning("handing over to %s", peer(sock))
    units = list(manager.units.values())
    taken = False
    try:
        named: list[tuple[Named, int]] = []
        await a_few_at_once(unit.leave() for unit in units)
        for unit in units:
            named += unit.lend()
        for at in range(0, len(named) or 1, BATCH):
            some = named[at : at + BATCH]
            last = at + BATCH >= len(named)
            wire.send(sock, Gift([name for name, _ in some], last=last), [fd for _, fd in some])
        found = await _next(sock, manager.settings.daemon.start_timeout + PATIENCE)
        taken = found is not None and isinstance(found[0], Taken)
    finally:
        if not taken:
            await _ended(server)  # two workers must not serve one client
            for unit in units:
                unit.take_back()
            await a_few_at_once(_started(manager, unit.name) for unit in units if unit.awaited or unit.settings.starts)
    if not taken:
        raise CommandError("it has ended before it served all clients: this daemon goes on")
    for unit in units:
        unit.gone()
    log.warning("handed over to %s: this daemon ends", peer(sock))
    manager.handed_over.set()
    await asyncio.Event().wait()  # the socket closes with this process


async def _started(manager: Manager, name: str) -> None:
    with contextlib.suppress(CommandError):  # it has logged why
        await manager.units[name].start()


async def _ended(server: int) -> None:
    """End a fork server, and its workers with it."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(server, signal.SIGKILL)
    with contextlib.suppress(CommandError):
        await _readable(server, PATIENCE)


async def _next(
    sock: socket.socket, patience: float = PATIENCE
) -> tuple[Here | Gift | Refused | Taken, list[int]] | None:
    """The other daemon's next message; None at its end."""
    await _readable(sock.fileno(), patience)
    return wire.received(sock, _decoder)


async def _readable(fd: int, patience: float) -> None:
    """Wait for the other daemon. Raises a CommandError if that takes too long."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        async with asyncio.timeout(patience):
            await readable.wait()
    except TimeoutError:
        raise CommandError(f"the other daemon has said nothing for {patience:g} s") from None
    finally:
        loop.remove_reader(fd)


async def _accepted(listener: socket.socket) -> socket.socket:
    listener.setblocking(False)
    try:
        async with asyncio.timeout(PATIENCE):
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
    except TimeoutError:
        raise CommandError("the running daemon has not called back") from None
    if peer(sock).uid not in (0, os.geteuid()):
        sock.close()
        raise CommandError(f"{peer(sock)} has called back, who is not this daemon's user")
    return sock


def _call(manager: Manager, path: Path) -> None:
    """Call the running daemon."""
    control = manager.places.control
    request = {"method": f"{INTERFACE}.HandOver", "parameters": {"socket": str(path)}}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE)
        try:
            connect(sock, control)
            sock.sendall(json.dumps(request).encode() + b"\0")
            answer = b""
            while not answer.endswith(b"\0") and (more := sock.recv(4096)):
                answer += more
        except OSError as error:
            hint = "start one without --takeover"
            raise CommandError(f"{control}: no daemon to take over from: {error.strerror or error}", hint) from None
    told = json.loads(answer.rstrip(b"\0") or b"{}")
    if "error" in told:
        raise CommandError(f"the running daemon does not hand over: {told.get('parameters', {}).get('message', told)}")
