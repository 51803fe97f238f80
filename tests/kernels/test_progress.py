"""Progress is a bar on a terminal, and plain lines elsewhere."""

from __future__ import annotations

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
    with os.fdopen(theirs, "w") as stream, open(ours, "rb", buffering=0):
        monkeypatch.setattr(sys, "stderr", stream)
        with shown() as progress:
            progress.step("fetching [one]")
            progress.share(0.5)
            progress.step("unpacking \x1b[31mone")
            progress.share(1.0)
        stream.flush()
        seen = os.read(ours, 1 << 16).decode()
    assert "fetching [one]" in seen
    assert "unpacking \\x1b[31mone" in seen
    assert "━" in seen
