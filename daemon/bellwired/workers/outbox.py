"""What a worker tells its manager: answers and events. It waits for neither."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from bellwire.serve.loop import Loop
from bellwired.workers import wire
from bellwired.workers.relay import say
from bellwired.workers.wire import Answer, Report

AGAIN = 0.02  # seconds until an unsent message is sent again


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
