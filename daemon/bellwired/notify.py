"""Tells the service manager about the daemon (sd_notify(3)).

It sends the few bytes itself. libsystemd would open a socket for each message, which fails in a process without a free
descriptor, and it would wait for a service manager whose queue is full.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping

from bellwired import terminal

AGAIN = 0.5  # seconds between two attempts to reach a service manager that does not listen


class ServiceManager:
    """The service manager that ``NOTIFY_SOCKET`` names. Without one, messages are dropped.

    Messages leave in order, over one socket that stays open. A message that cannot be delivered yet is kept, and no
    call waits for that. A newer message with the same fields replaces it, so at most one of each kind is kept.
    """

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._sock: socket.socket | None = None
        if address:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._connected = False
        self._waiting: dict[tuple[str, ...], tuple[bytes, int]] = {}
        self._again: asyncio.TimerHandle | None = None

    @property
    def present(self) -> bool:
        """Whether there is one."""
        return self._sock is not None

    def tell(self, **state: str) -> None:
        """Send ``tell(READY="1", STATUS="...")``. For the thread of the event loop.

        A line end in a value is escaped: a file's name must not become a field.
        """
        self._queue(tuple(state), state)

    def store(self, name: str, fd: int) -> None:
        """Have ``fd`` kept under ``name``, and passed to the next process. It stays the caller's.

        It is kept even if the far end of a socket has gone, which the service manager would look out for else.
        """
        if self._sock is not None:
            self._queue(("FDSTORE", name), {"FDSTORE": "1", "FDNAME": name, "FDPOLL": "0"}, os.dup(fd))

    def unstore(self, name: str) -> None:
        """Have everything closed that is kept under ``name``."""
        self._queue(("FDSTOREREMOVE", name), {"FDSTOREREMOVE": "1", "FDNAME": name})

    def _queue(self, key: tuple[str, ...], state: Mapping[str, str], fd: int = -1) -> None:
        """Send, or queue in the place of what waits under the same key, at the end. Owns the descriptor."""
        if self._sock is None:
            return
        self._drop(key)
        text = "\n".join(f"{field}={terminal.line(value)}" for field, value in state.items())
        self._waiting[key] = text.encode(), fd
        self._send(self._sock)

    def _drop(self, key: tuple[str, ...]) -> None:
        _, fd = self._waiting.pop(key, (b"", -1))
        if fd >= 0:
            os.close(fd)

    def reloading(self) -> None:
        """Say that a reload has begun. ``tell(READY="1")`` ends it."""
        self.tell(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))

    def close(self) -> None:
        """Close the socket. What could not be delivered is dropped."""
        if self._sock is not None:
            asyncio.get_running_loop().remove_writer(self._sock)
            self._sock.close()
            self._sock = None
        for key in list(self._waiting):
            self._drop(key)
        if self._again is not None:
            self._again.cancel()

    def _send(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            key, (text, fd) = next(iter(self._waiting.items()))
            try:
                if not self._connected:
                    sock.connect(self._address)  # the same descriptor may be connected again
                    self._connected = True
                socket.send_fds(sock, [text], [] if fd < 0 else [fd])
            except BlockingIOError:
                loop.add_writer(sock, self._send, sock)
                return
            except OSError:  # the service manager has gone, or starts anew
                self._connected = False
                loop.remove_writer(sock)
                if self._again is None:
                    self._again = loop.call_later(AGAIN, self._try_again, sock)
                return
            self._drop(key)
        loop.remove_writer(sock)

    def _try_again(self, sock: socket.socket) -> None:
        self._again = None
        self._send(sock)


def extension(seconds: float) -> dict[str, str]:
    """For :meth:`ServiceManager.tell`: allow the current start, reload or stop so many seconds from now on."""
    return {"EXTEND_TIMEOUT_USEC": str(round(seconds * 1e6))}


def watchdog_interval() -> float:
    """Seconds between two signs of life that the watchdog expects; 0 without a watchdog."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = os.environ.get("WATCHDOG_USEC", "0")
    return int(text) / 1e6 if text.isdecimal() else 0.0
