"""QEMU's control socket (QEMU, docs/interop/qmp-spec.rst)."""

from __future__ import annotations

import collections
import json
import socket
import time
from typing import Any

from bellwired.guest.errors import MachineError

PATIENCE = 30.0  # seconds
LONGEST_LINE = 1 << 20
KEPT_EVENTS = 1000


class Qmp:
    """A connection to QEMU's monitor on ``sock``, which it owns. For one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.settimeout(PATIENCE)
        self._lines = self._sock.makefile("rb")
        self._events: collections.deque[dict[str, Any]] = collections.deque(maxlen=KEPT_EVENTS)
        self._greeted = False

    def ask(self, command: str, **arguments: Any) -> Any:
        """Execute a command. Events that come meanwhile are kept for :meth:`wait`. A MachineError if QEMU refuses."""
        self._greet()
        try:
            self._sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        except OSError as error:
            raise MachineError(f"QEMU does not take {command}: {error.strerror or error}") from None
        while True:
            answer = self._receive()
            if "error" in answer:
                raise MachineError(f"QEMU refuses {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
            self._events.append(answer)

    def wait(self, event: str, timeout: float = PATIENCE, **data: Any) -> None:
        """Wait for an event with such data, which came after the last one that was waited for."""
        self._greet()
        deadline = time.monotonic() + timeout
        while True:
            found = self._events.popleft() if self._events else self._receive(deadline)
            if found.get("event") == event and data.items() <= found.get("data", {}).items():
                return

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._sock.close()

    def _greet(self) -> None:
        """QEMU speaks first. It is not waited for before there is something to ask."""
        if not self._greeted:
            self._greeted = True
            self._receive()
            self.ask("qmp_capabilities")

    def _receive(self, deadline: float | None = None) -> dict[str, Any]:
        self._sock.settimeout(PATIENCE if deadline is None else max(deadline - time.monotonic(), 1e-3))
        try:
            line = self._lines.readline(LONGEST_LINE)
        except OSError as error:
            raise MachineError(f"QEMU does not answer: {error.strerror or error}") from None
        if not line.endswith(b"\n"):
            raise MachineError("QEMU has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer
