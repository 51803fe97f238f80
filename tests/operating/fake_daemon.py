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
from typing import Any, Self, get_args, get_origin, get_type_hints, is_typeddict

from bellwired.manager.answers import Happening, LogLine, Outcome
from bellwired.manager.describe import About, Description, RegisterValue

NASTY = (
    "\x1b]0;owned\x07\x1b[2J\x1b[31m\x9b5m\x7f\x85\u202e\u2066\r[red]x[/red][link=http://e]y[/link]\n"
    "bellwire: forged\u2028"
)
"""Escape sequences, C0, DEL, C1, bidirectional controls, markup, and a line that another program did not write."""


def nasty(kind: Any) -> Any:
    """A value of a type of the control API in which every text, names and keys too, is nasty."""
    arguments = get_args(kind)
    if is_typeddict(kind):
        return {key: nasty(each) for key, each in get_type_hints(kind).items()}
    if get_origin(kind) is list:
        return [nasty(arguments[0])]
    if get_origin(kind) is dict:
        return {NASTY: nasty(arguments[1])}
    if arguments:  # one of several types, or nothing
        return nasty(next(each for each in arguments if each is not type(None)))
    return NASTY if kind is str else kind(1)


def replies() -> dict[str, dict[str, Any]]:
    return {
        "GetInfo": dict.fromkeys(("vendor", "product", "version", "url"), NASTY) | {"interfaces": [NASTY]},
        "About": {"daemon": nasty(About)},
        "List": {"devices": [nasty(Description)]},
        "Describe": {"device": nasty(Description)},
        "Registers": {"registers": [nasty(RegisterValue)]},
        "Reload": {"outcome": nasty(Outcome)},
        "Log": {"lines": [nasty(LogLine), nasty(LogLine) | {"level": "error"}]},
        "Monitor": {"event": nasty(Happening) | {"fields": {NASTY: NASTY, "text": NASTY}}},
        "Folders": {"folders": [f"/{NASTY}"]},
        "Start": {},
    }


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
