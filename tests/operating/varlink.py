"""The control API as any varlink client would speak it: JSON and NUL bytes, no library."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE = 30.0
INTERFACE = "org.bellwire.Manager"


class Refused(Exception):
    """An error reply."""

    def __init__(self, error: str, parameters: dict[str, Any]) -> None:
        super().__init__(error, parameters)
        self.error = error
        self.parameters = parameters


class Varlink:
    """A connection to the control socket at ``path``."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise
        self._unread = b""

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def send(self, method: str, /, *, more: bool = False, **parameters: Any) -> None:
        name = method if "." in method else f"{INTERFACE}.{method}"
        call = {"method": name, "parameters": parameters, "more": more}
        self.sock.sendall(json.dumps(call).encode() + b"\0")

    def receive(self) -> dict[str, Any]:
        """The next reply's parameters. EOFError when the daemon has hung up."""
        while b"\0" not in self._unread:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self._unread += data
        text, _, self._unread = self._unread.partition(b"\0")
        reply = json.loads(text)
        parameters: dict[str, Any] = reply.get("parameters", {})
        if "error" in reply:
            raise Refused(reply["error"], parameters)
        return parameters

    def call(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        self.send(method, **parameters)
        return self.receive()

    def until(self, kind: str, device: str | None = None) -> dict[str, Any]:
        """The next event of that kind in a Monitor stream; those before it are skipped."""
        while True:
            event = self.until_any(kind)
            if device in (None, event["device"]):
                return event

    def until_any(self, *kinds: str) -> dict[str, Any]:
        """The next event of one of these kinds in a Monitor stream."""
        while True:
            event: dict[str, Any] = self.receive()["event"]
            if event["kind"] in kinds:
                return event
