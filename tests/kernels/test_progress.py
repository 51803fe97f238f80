"""Progress is a bar on a terminal, and plain lines elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import sys

import pytest

from bellwired.guest.progress import shown


def test_in_a_log_each_step_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", seen)
    with shown() as progress:
        progress.step("fetching one")
        progress.share(0.5)
        progress.step("unpacking \x1b[31mone")
    assert seen.getvalue() == "fetching one\nunpacking \\x1b[31mone\n"


def test_on_a_terminal_each_step_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with open(ours, "rb", buffering=0) as terminal:
        with os.fdopen(theirs, "w") as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            with shown() as progress:
                progress.step("fetching [one]")
                progress.share(0.5)
                progress.step("unpacking \x1b[31mone")
                progress.share(1.0)
        seen = whole(terminal).decode()
    assert "fetching [one]" in seen
    assert "unpacking \\x1b[31mone" in seen
    assert "━" in seen


def whole(terminal: io.FileIO) -> bytes:
    """Everything that was written to a terminal, whose other end is closed: reads give pieces, and EIO at the end."""
    parts = []
    with contextlib.suppress(OSError):
        while part := terminal.read(1 << 16):
            parts.append(part)
    return b"".join(parts)
