"""A program that listens where a daemon should, and answers every call with nasty texts."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NASTY = (
    "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b5m\x7f\x85\u202e\u2066\r[red]x[/red][link=http://e]y[/link]\n"
    "bellwire: forged\u2028"
)
"""Escape sequences, C0, DEL, C1, bidirectional controls, markup, and a line that another program did not write."""


def description() -> dict[str, Any]:
    client = {"pid": 1, "uid": 1, "since": 1.0, "capabilities": {NASTY: NASTY}, "maps": 1, "bytes": 1}
    return {
        "name": NASTY, "device": NASTY, "state": NASTY, "since": 1.0, "autostart": True, "enabled": True,
        "socket": f"/{NASTY}", "pid": 1, "memory": 1, "restarts": 1, "error": NASTY, "connected": True,
        "client": client, "statistics": {NASTY: 1}, "recent": [{"time": 1.0, "text": NASTY}],
        "changed": {NASTY: NASTY}, "code": {NASTY: 1.0}, "troubles": {NASTY: NASTY},
    }  # fmt: skip


def replies() -> dict[str, dict[str, Any]]:
    register = {"name": NASTY, "bar": 0, "offset": 0, "size": 4, "access": NASTY, "value": 1, "meaning": NASTY}
    event = {"time": 1.0, "device": NASTY, "kind": NASTY, "fields": {NASTY: NASTY, "text": NASTY}}
    names = {"started": [NASTY], "restarted": [NASTY], "stopped": [NASTY], "unchanged": [NASTY]}
    return {
        "GetInfo": dict.fromkeys(("vendor", "product", "version", "url"), NASTY) | {"interfaces": [NASTY]},
        "About": {"daemon": {"version": NASTY, "pid": 1, "uid": 1, "summary": NASTY, "troubles": {NASTY: NASTY}}},
        "List": {"devices": [description()]},
        "Describe": {"device": description()},
        "Registers": {"registers": [register]},
        "Reload": {"outcome": {**names, "failed": {NASTY: NASTY}}},
        "Log": {"lines": [{"time": 1.0, "level": level, "text": NASTY} for level in ("error", NASTY)]},
        "Monitor": {"event": event},
        "Folders": {"folders": [f"/{NASTY}"]},
        "Start": {},
    }  # fmt: skip


class FakeDaemon:
    """Answers at ``path`` while the block lasts. What it has no reply for is an error with nasty texts."""

    def __init__(self, path: Path, uid: int | None = None) -> None:
        """With ``uid``, that user listens."""
        self.path = path
        self.called: list[str] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.fspath(path))
        if uid is not None:
            os.seteuid(uid)
        try:
            self._listener.listen()  # the kernel notes the user
        finally:
            os.seteuid(os.getuid())
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self.path.unlink()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                with caller, contextlib.suppress(OSError):
                    self._answer(caller)

    def _answer(self, caller: socket.socket) -> None:
        unread = b""
        deadline = time.monotonic() + 10
        caller.settimeout(10)
        while time.monotonic() < deadline and (data := caller.recv(1 << 16)):
            unread += data
            while b"\0" in unread:
                message, _, unread = unread.partition(b"\0")
                method = json.loads(message)["method"].rpartition(".")[2]
                self.called.append(method)
                found = replies().get(method)
                failed = {"error": "org.bellwire.Manager.Failed", "parameters": {"message": NASTY, "hint": NASTY}}
                caller.sendall(json.dumps(failed if found is None else {"parameters": found}).encode() + b"\0")
