"""Serves the control API: accepts callers, and finds out who they are.

Root and the user that the daemon runs as may do everything. Members of ``control-group`` may look.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import grp
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator

from asyncvarlink import VarlinkTransport

from bellwire.model.limited import LimitedLog
from bellwired.listen import Listener
from bellwired.manager.admission import Admission
from bellwired.manager.answers import INTERFACE
from bellwired.manager.control import LAST, Control
from bellwired.manager.control_connection import ControlConnection
from bellwired.manager.lineage import is_device
from bellwired.manager.manager import Manager

LAST_WORDS = 2.0  # seconds for callers to read their last answers
PAUSE = 1.0
MOST_REFUSED = 8  # refused callers that are given a moment to read the reason
_UCRED = struct.Struct("iII")
_SO_PEERGROUPS = 59
_MOST_GROUPS = 256  # what Python's getsockopt() has room for

log = logging.getLogger("bellwired")


@contextlib.asynccontextmanager
async def serving(manager: Manager, given: socket.socket | None) -> AsyncIterator[None]:
    """Serve the control API on ``given``, or on a new socket."""
    group = manager.settings.daemon.control_group
    own = None
    if given is None:
        own = Listener(manager.places.control, 0o660 if group else 0o600, group=group)
        given = own.socket
    server = Server(manager, given)
    server.open()
    try:
        yield
    finally:
        await server.close()
        if own is not None:
            own.close()


class Server:
    """Accepts callers. The kernel says which user a caller is, and that decides what the caller may do."""

    def __init__(self, manager: Manager, sock: socket.socket, *, refuses_devices: bool = True) -> None:
        self._manager = manager
        self._sock = sock
        self._refuses_devices = refuses_devices
        self._callers: dict[VarlinkTransport, ControlConnection] = {}
        self._admission = Admission()
        self._refused: set[socket.socket] = set()
        self._log = LimitedLog(log)

    def open(self) -> None:
        """Begin."""
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._accept)

    async def close(self, why: str = "the daemon stops") -> None:
        """Accept no more callers. The present ones get the answers that they wait for, if they read them."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        self._manager.broadcaster.publish("", LAST, {"text": why})
        await asyncio.sleep(0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await asyncio.gather(*(caller.idle() for caller in self._callers.values()))
        for connection in list(self._refused):
            self._forget(connection)
        transports = list(self._callers)
        for transport in transports:
            transport.abort()
        await asyncio.gather(*(transport.closed_future for transport in transports))

    def _accept(self) -> None:
        try:
            connection, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptor left, most likely
            self._log.warning("accept", "cannot accept a caller: %s", error.strerror)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._sock.fileno())
            loop.call_later(PAUSE, self._go_on)
            return
        pid, uid, gids = _peer(connection)
        if self._refuses_devices and is_device(connection, pid, uid):
            self._refuse(connection, f"process {pid} belongs to a device")
            return
        may_change = uid in (0, os.geteuid())
        refusal = self._admission.refusal(uid, may_change=may_change)
        if refusal:
            self._refuse(connection, refusal)
            return
        caller = ControlConnection(connection)
        may_look = may_change or _gid(self._manager.settings.daemon.control_group) in gids
        caller.offer(Control(self._manager, caller, may_look=may_look, may_change=may_change))
        transport = VarlinkTransport(asyncio.get_running_loop(), connection, connection, caller)
        self._callers[transport] = caller
        self._admission.came(uid, may_change=may_change)

        def left(_: asyncio.Future[None]) -> None:
            self._callers.pop(transport)
            self._admission.went(uid, may_change=may_change)

        transport.closed_future.add_done_callback(left)

    def _refuse(self, connection: socket.socket, why: str) -> None:
        """Answer a call that has not come yet, and hang up a moment later: the caller may still be sending it."""
        self._log.warning("refused", "a caller of the control socket was refused: %s", why)
        error = {"error": f"{INTERFACE}.Failed", "parameters": {"message": f"refused: {why}", "hint": ""}}
        with contextlib.suppress(OSError):
            connection.setblocking(False)
            connection.send(json.dumps(error).encode() + b"\0")
        if len(self._refused) >= MOST_REFUSED:
            connection.close()
            return
        self._refused.add(connection)
        asyncio.get_running_loop().call_later(PAUSE, self._forget, connection)

    def _forget(self, connection: socket.socket) -> None:
        self._refused.discard(connection)
        connection.close()

    def _go_on(self) -> None:
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._sock.fileno(), self._accept)


def _peer(connection: socket.socket) -> tuple[int, int, set[int]]:
    """The peer's process, user and groups at the time when it connected (unix(7), socket(7))."""
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        groups = array.array("I", connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS))
    except OSError:  # more than Python has room for
        return pid, uid, {gid}
    return pid, uid, {gid, *groups}


def _gid(group: str) -> int:
    """A group's ID; -1, which no group has, for no group."""
    try:
        return grp.getgrnam(group).gr_gid if group else -1
    except KeyError:
        log.error("control-group: there is no group %r", group)
        return -1
