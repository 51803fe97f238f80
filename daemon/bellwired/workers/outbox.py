"""What a worker sends to its manager: answers, events and log lines. None of them is waited for."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from bellwire.serve.loop import Loop
from bellwired.workers import wire
from bellwired.workers.wire import Answer, Report

AGAIN = 0.02  # seconds until an unsent message is sent again
MOST_LINES = 100  # log lines that are sent to the manager in a second
LONGEST_LINE = 8192  # characters of a record, with its traceback, that are sent to the manager


class Outbox:
    """Sends to the manager without waiting for it.

    If the socket is full, an answer waits. Events are lost meanwhile, and the next event says how many.
    """

    def __init__(self, channel: socket.socket, loop: Loop) -> None:
        self._channel = channel
        self._loop = loop
        self._waiting: deque[tuple[Answer, list[int]]] = deque()
        self._lost = 0

    def tell(self, kind: str, **fields: Any) -> None:
        """Send an event. It is lost if the socket is full."""
        if self._waiting or (self._lost and not say(self._channel, Report("lost", {"count": self._lost}))):
            self._lost += 1
            return
        self._lost = 0
        if not say(self._channel, Report(kind, fields)):
            self._lost = 1

    def answer(self, answer: Answer, fds: list[int]) -> None:
        """Send an answer, with descriptors that stay open here. It waits if the socket is full."""
        self._waiting.append((answer, [os.dup(fd) for fd in fds]))
        if len(self._waiting) == 1:
            self._go_on()

    def _go_on(self) -> None:
        while self._waiting:
            if not say(self._channel, *self._waiting[0]):
                self._loop.after(AGAIN, self._go_on)
                return
            wire.close(self._waiting.popleft()[1])

    def soon(self, delay: float, callback: Callable[[], None]) -> None:
        """Call back later, on the same thread."""
        self._loop.after(delay, callback)


class Relay(logging.Handler):
    """Sends log records to the manager, from any thread.

    What finds no room is in the log alone, and so are more than ``MOST_LINES`` a second: a device that logs all the
    time keeps only its own worker busy. The next line that is sent says how many were left out.
    """

    def __init__(self, channel: socket.socket) -> None:
        super().__init__()
        self._channel = channel
        self._second = 0
        self._passed = self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record, with its traceback."""
        if int(record.created) != self._second:
            self._second, self._passed = int(record.created), 0
        if self._passed >= MOST_LINES:
            self._lost += 1
            return
        self._passed += 1
        try:
            text = self.format(record)[:LONGEST_LINE]
        except Exception:  # noqa: BLE001 a mistake in the call: the log says so
            return
        if self._lost:
            text = f"({self._lost} lines before this one were too many) {text}"
        fields = {"time": record.created, "level": record.levelname.lower(), "text": text}
        with contextlib.suppress(OSError):  # the worker is about to end
            self._lost = 0 if say(self._channel, Report("log", fields)) else self._lost + 1


def say(channel: socket.socket, message: Answer | Report, fds: list[int] | None = None) -> bool:
    """Send a message. False if the socket is full. A manager that has gone is no error here: :meth:`run` handles it."""
    try:
        wire.send(channel, message, fds)
    except BlockingIOError:
        return False
    except (BrokenPipeError, ConnectionError):
        pass
    return True
