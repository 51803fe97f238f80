"""One connection to the control socket, with limits: a caller may connect and still be hostile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
from typing import Any

from asyncvarlink import (
    FileDescriptorArray,
    VarlinkInterface,
    VarlinkInterfaceRegistry,
    VarlinkInterfaceServerProtocol,
    VarlinkMethodCall,
    VarlinkMethodReply,
)
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from bellwired.release import release

LONGEST_CALL = 1 << 16  # bytes
SLOW = 300.0  # seconds for a caller to make room for the next answer
MOST_CALLS = 100  # calls that a caller may send before it reads the answers

log = logging.getLogger("bellwired")


class ControlConnection(VarlinkInterfaceServerProtocol):
    """Answers the calls that come over ``connection``; one that misbehaves is hung up on."""

    def __init__(self, connection: socket.socket) -> None:
        self._offered = VarlinkInterfaceRegistry()
        super().__init__(self._offered)
        self._connection = connection
        self._unfinished = 0
        self._ahead = 0
        self._dropped = False
        self._busy: set[asyncio.Future[None]] = set()

    def offer(self, interface: VarlinkInterface) -> None:
        """The interfaces that may be called, beside those of every varlink service."""
        self._offered.register_interface(interface)
        service = VarlinkServiceInterface("Bellwire", "bellwired", release(), "", self._offered)
        self._offered.register_interface(service)

    def has_hung_up(self) -> bool:
        """Whether the caller no longer reads."""
        if self._connection.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._connection, 0)
        return bool(poll.poll(0))

    async def idle(self) -> None:
        """Wait until all calls are answered and the answers are sent."""
        while self._busy:
            await asyncio.wait(self._busy)

    # -- asyncvarlink's hooks

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Take received bytes. They may complete one call or several."""
        if self._dropped:
            return
        ends = data.count(b"\0")
        self._unfinished = len(data) - data.rfind(b"\0") - 1 if ends else self._unfinished + len(data)
        self._ahead += ends
        if self._unfinished > LONGEST_CALL:
            self._drop(f"it sent a call of more than {LONGEST_CALL} bytes")
        elif self._ahead > MOST_CALLS:
            self._drop(f"it sent more than {MOST_CALLS} calls sent ahead")
        else:
            try:
                super().message_received(data, fds)
            except (ValueError, RecursionError) as error:
                self._drop(f"it sent what is no JSON: {error}")

    def request_received(self, obj: Any, fds: FileDescriptorArray | None) -> asyncio.Future[None] | None:
        """Handle the next call."""
        self._ahead -= 1
        return None if self._dropped else super().request_received(obj, fds)

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Handle a message that is not a call."""
        self._ahead -= 1
        self._drop(f"it sent what is no call: {err}")

    def call_received(self, call: VarlinkMethodCall, fds: FileDescriptorArray | None) -> asyncio.Future[None] | None:
        """Handle a well-formed call."""
        return self._kept(super().call_received(call, fds))

    def send_reply(
        self, reply: VarlinkMethodReply, fds: list[int] | None = None, autoclose: bool = True
    ) -> asyncio.Future[None]:
        """Send an answer to the current call."""
        future = super().send_reply(reply, fds, autoclose)
        self._kept(future)
        overdue = asyncio.get_running_loop().call_later(SLOW, self._drop, f"it has read no answer for {SLOW:g} s")
        future.add_done_callback(lambda _: overdue.cancel())
        return future

    def _kept(self, future: asyncio.Future[None] | None) -> asyncio.Future[None] | None:
        if future is not None:
            self._busy.add(future)
            future.add_done_callback(self._busy.discard)
        return future

    def _drop(self, why: str) -> None:
        """Close the connection. Ignore what the caller has sent already."""
        if not self._dropped:
            self._dropped = True
            log.warning("a caller of the control socket was hung up on: %s", why)
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
