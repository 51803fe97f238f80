"""What a guest's kernel prints on its serial console."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

KEPT = 4 << 20
"""Bytes that are kept: the last ones."""
TAIL = 50
"""Lines that an error shows."""

Listener = Callable[[bytes], object]


class Console:
    """The console's bytes, as they come. One thread feeds it; any thread may read it."""

    def __init__(self, listeners: tuple[Listener, ...] = ()) -> None:
        self._held = bytearray()
        self._changed = threading.Condition()
        self._ended = False
        self._listeners = listeners

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        with self._changed:
            self._held += data
            if len(self._held) > 2 * KEPT:
                del self._held[:-KEPT]
            self._changed.notify_all()
        for listener in self._listeners:
            listener(data)

    def end(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def data(self) -> bytes:
        """The last :data:`KEPT` bytes."""
        with self._changed:
            return bytes(self._held[-KEPT:])

    @property
    def text(self) -> str:
        """The same as text, with plain line ends."""
        return self.data.decode(errors="replace").replace("\r\n", "\n")

    def tail(self, lines: int = TAIL) -> str:
        """The last lines."""
        return "\n".join(self.text.rstrip("\n").split("\n")[-lines:])

    def wait_for(self, text: bytes, timeout: float) -> bool:
        """Wait until ``text`` has come. False if it does not in time, or cannot any more."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while text not in self._held:
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def wait_for_end(self, timeout: float) -> bool:
        """Wait until the machine has ended. False if it does not in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout)
