"""HTTP for scrapes of metrics, on a UNIX or a TCP socket. Any local user may be able to connect, so all is limited."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from bellwire.model.limited import LimitedLog
from bellwired.errors import CommandError
from bellwired.listen import Listener
from bellwired.manager import descriptors
from bellwired.settings import Daemon

LONGEST = 8192  # bytes of a request
PATIENCE = 3.0  # seconds for a request
SENDING = 10.0  # seconds for a scraper to read the answer
EACH, MOST = 8, 32  # connections at a time: of one user or address, and of all
PAUSE = 0.1  # seconds without an accept, after there was no room for a connection
FRESH = 0.25  # seconds for which an answer is good for other scrapes
AT_ONCE = 16  # connections that are accepted before other events have their turn
BACKLOG = 128
_UCRED = struct.Struct("3i")

log = logging.getLogger("bellwired")


class Scrapes:
    """Accepts scrapes at ``sock``, and answers each with what ``make`` returns: a media type and a body."""

    def __init__(self, sock: socket.socket, make: Callable[[], Awaitable[tuple[str, bytes]]]) -> None:
        self._sock = sock
        self._make = make
        self._made: asyncio.Task[tuple[str, bytes]] | None = None
        self._since = 0.0
        self._peers: Counter[object] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._log = LimitedLog(log)
        sock.setblocking(False)
        asyncio.get_running_loop().add_reader(sock, self._accept)

    async def close(self) -> None:
        """Accept no more, and hang up on those who are being answered."""
        asyncio.get_running_loop().remove_reader(self._sock)
        if self._pause is not None:
            self._pause.cancel()
        tasks = [*self._tasks, *([self._made] if self._made is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            if not self._accept_one():
                return

    def _accept_one(self) -> bool:
        """Accept a connection. False if there is none, or no room for one."""
        if self._peers.total() >= MOST or descriptors.scarce():
            self._wait(f"{self._peers.total()} at a time, {descriptors.used()} descriptors used")
            return False
        try:
            connection, address = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:  # no descriptor left, most likely
            self._wait(str(error.strerror))
            return False
        connection.setblocking(False)
        peer = _peer(connection, address)
        if self._peers[peer] >= EACH:
            connection.close()
            self._log.warning("refused", "a scrape of metrics was refused: %s has %d connections already", peer, EACH)
            return True
        self._peers[peer] += 1
        task = asyncio.create_task(self._serve(connection, peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def _wait(self, why: str) -> None:
        """Accept nobody for a moment."""
        self._log.warning("full", "scrapes of metrics have to wait: %s", why)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock)
        self._pause = loop.call_later(PAUSE, loop.add_reader, self._sock, self._accept)

    async def _serve(self, connection: socket.socket, peer: object) -> None:
        loop = asyncio.get_running_loop()
        try:
            with connection, contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(PATIENCE):
                    request = b""
                    while b"\r\n\r\n" not in request:
                        data = await loop.sock_recv(connection, LONGEST)
                        request += data
                        if not data or len(request) > LONGEST:
                            return
                answer = await self._answer(request)
                async with asyncio.timeout(SENDING):
                    await loop.sock_sendall(connection, answer)
        finally:
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    async def _answer(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        status, media, body = "404 Not Found", "text/plain", b"GET /metrics\n"
        if method not in (b"GET", b"HEAD"):
            status = "405 Method Not Allowed\r\nAllow: GET, HEAD"
        elif path in (b"/metrics", b"/"):
            try:
                media, body = await self._body()
                status = "200 OK"
            except Exception as error:  # noqa: BLE001 no mistake of ours may end the metrics
                self._log.failure("make", error, "metrics cannot be collected: %s", error)
                status, body = "500 Internal Server Error", b"the daemon's log says why\n"
        head = f"HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {len(body)}\r\n"
        return f"{head}Connection: close\r\n\r\n".encode() + (b"" if method == b"HEAD" else body)

    async def _body(self) -> tuple[str, bytes]:
        """Scrapes at the same time share one answer."""
        if self._made is None or (self._made.done() and time.monotonic() - self._since > FRESH):
            self._since = time.monotonic()
            self._made = asyncio.ensure_future(self._make())
        return await asyncio.shield(self._made)


@contextlib.asynccontextmanager
async def listening(daemon: Daemon) -> AsyncIterator[list[socket.socket]]:
    """The sockets at the configured address, during the block. Raises a CommandError if there can be none."""
    where = daemon.metrics
    kind, _, path = where.partition(":")
    with contextlib.ExitStack() as stack:
        try:
            if kind == "unix":
                own = Listener(Path(path), int(daemon.metrics_mode, 8), group=daemon.metrics_group)
                stack.callback(own.close)
                found = [own.socket]
            else:
                found = [stack.enter_context(sock) for sock in await _bound(where)]
        except (OSError, ValueError, OverflowError, CommandError) as error:
            raise CommandError(f"metrics = {where!r}: {error}", "write unix:PATH or ADDRESS:PORT") from None
        yield found


async def _bound(where: str) -> list[socket.socket]:
    host, _, port = where.rpartition(":")
    if not host:
        raise ValueError("no address to listen on")
    if not 0 <= int(port) < 1 << 16:
        raise ValueError("a port is at most 65535")
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    bound: list[socket.socket] = []
    try:
        for family, *_, address in found:
            bound.append(socket.create_server(address[:2], family=family, backlog=BACKLOG))
    except OSError:
        for sock in bound:
            sock.close()
        raise
    return bound


def _peer(connection: socket.socket, address: object) -> object:
    """Whom a connection counts for: the user on a UNIX socket, the address on TCP."""
    if connection.family == socket.AF_UNIX:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return f"user {_UCRED.unpack(credentials)[1]}"
    return address[0] if isinstance(address, tuple) else address
