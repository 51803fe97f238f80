"""A connection to a back end: requests, replies, descriptors, and a limit to every wait."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from bellwire.vhost.errors import BackendError, BackendLost
from bellwire.vhost.messages import HEADER, NEED_REPLY, REPLY, Header, Request, header, named, u64

PATIENCE = 1.5
"""Seconds that a back end has for all that one access of the guest asks of it: less than a hang-timeout (2 s)."""
MOST_FDS = 8
MOST_LEFT = 32
"""Replies that a process which has died may have left unread: one, and those of successors that died soon."""
_PIECES = 1.0  # ms until another look at a message of which only a part has come


class Reply:
    """The payload of a reply, and the descriptors beside it. The receiver closes those that it does not keep."""

    def __init__(self, payload: bytes, fds: list[int]) -> None:
        self.payload = payload
        self.fds = fds


class Connection:
    """The front end's end of ``sock``, which it owns. ``meanwhile`` runs when its descriptor can be read during a wait.

    Any breach of the protocol, and any wait that is too long, raises BackendLost: the caller closes the connection.

    A request is sent, and a reply without descriptors is taken, in one system call. So a process that is killed leaves
    whole messages in the socket, and another one can go on with it (:meth:`resume`).
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._ended = select.poll()
        self._ended.register(sock, select.POLLRDHUP)
        self._meanwhile: tuple[int, Callable[[], None]] | None = None
        self._until: float | None = None
        self.acknowledges = False
        """Whether the back end knows REPLY_ACK: it then answers every request that asks for an answer."""

    def fileno(self) -> int:
        """The socket's descriptor. Between requests it can be read only when the back end has gone."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket. The connection ends unless somebody else has it open, too."""
        self._sock.close()

    def hang_up(self) -> None:
        """End the connection, whoever has it open."""
        with contextlib.suppress(OSError):  # the back end has ended it
            self._sock.shutdown(socket.SHUT_RDWR)

    def resume(self) -> None:
        """Go on where a process has died: throw away the replies that it has not read.

        The back end answers in order. So the last replies are those to the requests that are sent here. Their pattern
        is this process's own: a successor that died at this, too, has sent another one.
        """
        marks = [Request.GET_PROTOCOL_FEATURES, *[Request.GET_FEATURES] * (1 + os.getpid() % 8)]
        marks.append(Request.GET_PROTOCOL_FEATURES)
        with self.limited():
            self._send_all(marks[0], b"".join(header(each, 0) for each in marks))
            seen: deque[int] = deque(maxlen=len(marks))
            for _ in range(MOST_LEFT):
                found, _, fds = self._message(marks[0])
                for fd in fds:
                    socket.close(fd)
                seen.append(found.request)
                if list(seen) == marks:
                    return
        raise BackendLost(f"the back end has sent {MOST_LEFT} replies that nobody has asked for")

    @contextlib.contextmanager
    def limited(self, seconds: float | None = None) -> Iterator[None]:
        """All waits in the block together take at most ``seconds``, or PATIENCE.

        A block within another has the outer limit.
        """
        if self._until is not None:
            yield
            return
        self._until = time.monotonic() + (PATIENCE if seconds is None else seconds)
        try:
            yield
        finally:
            self._until = None

    def listen_to(self, fd: int, callback: Callable[[], None]) -> None:
        """Run ``callback`` when ``fd`` can be read during a wait: the back end may want an answer there first."""
        self._meanwhile = fd, callback
        self._poll.register(fd, select.POLLIN)

    def stop_listening(self) -> None:
        """Undo :meth:`listen_to`. Call it before the descriptor is closed."""
        if self._meanwhile is not None:
            self._poll.unregister(self._meanwhile[0])
            self._meanwhile = None

    def tell(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request that has no reply of its own.

        If the back end knows REPLY_ACK, it has carried the request out when this returns. Raises BackendError if it
        has refused it.
        """
        with self.limited():
            self._send(request, payload, fds, need_reply=self.acknowledges)
            if not self.acknowledges:
                return
            answer = self._answer(request, 0)
            if result := u64(answer.payload, named(request)):
                raise BackendError(f"the back end refuses {request.name} (result {result})")

    def settle(self) -> None:
        """Return when the back end has carried out all requests: it handles them in order, and answers the last one."""
        if not self.acknowledges:
            self.number(Request.GET_FEATURES)

    def number(self, request: Request) -> int:
        """Ask for a number of 64 bits."""
        return u64(self.ask(request).payload, request.name)

    def ask(self, request: Request, payload: bytes = b"", fds: Sequence[int] = (), *, most_fds: int = 0) -> Reply:
        """Send a request and return its reply, which may have up to ``most_fds`` descriptors."""
        with self.limited():
            self._send(request, payload, fds, need_reply=False)
            return self._answer(request, most_fds)

    def _send(self, request: Request, payload: bytes, fds: Sequence[int], *, need_reply: bool) -> None:
        self._send_all(request, header(request, len(payload), need_reply=need_reply) + payload, fds)

    def _send_all(self, request: Request, message: bytes, fds: Sequence[int] = ()) -> None:
        data = memoryview(message)
        while data:
            try:
                sent = socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._wait(request, select.POLLOUT)
                continue
            except OSError as error:
                raise BackendLost(f"{request.name} cannot be sent: {error.strerror}") from None
            data, fds = data[sent:], ()

    def _answer(self, request: Request, most_fds: int) -> Reply:
        found, payload, fds = self._message(request)
        try:
            if found.request != request or found.flags & ~(NEED_REPLY | REPLY | 3) or not found.flags & REPLY:
                raise BackendLost(f"{found.name} (flags {found.flags:#x}) came as the reply to {request.name}")
            if len(fds) > most_fds:
                raise BackendLost(f"{request.name}: the reply has {len(fds)} descriptors, at most {most_fds} expected")
        except BaseException:
            for fd in fds:
                socket.close(fd)
            raise
        return Reply(payload, fds)

    def _message(self, request: Request) -> tuple[Header, bytes, list[int]]:
        """The next message, and its descriptors, which are the caller's."""
        fds: list[int] = []
        try:
            found = Header.unpack(self._look(request, HEADER.size))
            if request is Request.GET_INFLIGHT_FD:  # descriptors may come with the header, and end a look
                self._receive(request, HEADER.size, fds)
                return found, self._receive(request, found.size, fds), fds
            whole = HEADER.size + found.size
            self._look(request, whole)
            return found, self._receive(request, whole, fds)[HEADER.size :], fds
        except BaseException:
            for fd in fds:
                socket.close(fd)
            raise

    def _look(self, request: Request, size: int) -> bytes:
        """The next bytes, which stay in the socket."""
        ended: list[tuple[int, int]] = []
        while True:
            try:
                data = self._sock.recv(size, socket.MSG_PEEK)
            except BlockingIOError:
                self._wait(request, select.POLLIN)
                continue
            except OSError as error:
                raise BackendLost(f"the reply to {request.name} cannot be received: {error.strerror}") from None
            if len(data) == size:
                return data
            if not data or ended:
                raise BackendLost(f"the back end has closed the connection at {request.name}")
            ended = self._ended.poll(_PIECES)
            self._wait(request, select.POLLIN)  # it can be read: this looks at the time only

    def _receive(self, request: Request, size: int, fds: list[int]) -> bytes:
        """The next bytes, and add the descriptors beside them."""
        data = b""
        while len(data) < size:
            try:
                more, taken, _, _ = socket.recv_fds(self._sock, size - len(data), MOST_FDS, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                self._wait(request, select.POLLIN)
                continue
            except OSError as error:
                raise BackendLost(f"the reply to {request.name} cannot be received: {error.strerror}") from None
            fds += taken
            if not more:
                raise BackendLost(f"the back end has closed the connection at {request.name}")
            data += more
        return data

    def _wait(self, request: Request, events: int) -> None:
        """Wait for the socket. Meanwhile the back end's own requests are answered."""
        assert self._until is not None
        self._poll.modify(self._sock, events)
        own = self._sock.fileno()
        while True:
            left = self._until - time.monotonic()
            ready = [fd for fd, _ in self._poll.poll(left * 1000)] if left > 0 else []
            if not ready:
                raise BackendLost(f"the back end does not answer {request.name} in time ({PATIENCE:g} s)")
            if self._meanwhile is not None and self._meanwhile[0] in ready:
                self._meanwhile[1]()
            if own in ready:
                return
