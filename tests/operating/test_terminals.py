"""What the commands show on a terminal: colours, and as many columns as it has room for."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from bellwired.commands.cli import main
from operating.instance import Instance


def on_a_terminal(words: list[str], environment: dict[str, str]) -> str:
    """What a command shows on a terminal."""
    ours, theirs = pty.openpty()
    base = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(
        [sys.executable, "-m", "bellwired", *words], stdout=theirs, env={**base, "TERM": "xterm", **environment}
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 1 << 16)
            except OSError:  # the far end is closed
                break
            shown += data
    os.close(ours)
    assert process.returncode == 0
    return shown.decode()


def test_a_terminal_gets_colours_unless_no_color_is_set(daemon: Instance) -> None:
    assert "\x1b[32mrunning" in on_a_terminal(["list", *daemon.places], {})
    assert "\x1b[3" not in on_a_terminal(["list", *daemon.places], {"NO_COLOR": "1"})


class Terminal(io.StringIO):
    """Standard output that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


InColumns = Callable[..., str]


@pytest.fixture
def in_columns(daemon: Instance, monkeypatch: pytest.MonkeyPatch) -> InColumns:
    """What a command shows on a terminal so wide, without bold type."""

    def shown(columns: int, *words: str) -> str:
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            for name, value in (("COLUMNS", str(columns)), ("TERM", "xterm"), ("NO_COLOR", "1")):
                patch.setenv(name, value)
            assert main([*words, *daemon.places]) == 0
        return re.sub("\x1b[^m]*m", "", terminal.getvalue())

    return shown


NARROW = {
    "list": ["steady .*running", "vm1-network-card-0 .*stopped"],
    "regs steady": ["wildcard_count .* 0x[0-9a-f]+$"],
    "plugins": ["edu +Computes", "virtio-console +"],
    "status steady": ["Device: steady", "State: running"],
    "logs steady": ["accepts clients"],
}
"""What stays on one line, by command."""


@pytest.mark.parametrize("columns", [40, 60])
@pytest.mark.parametrize("command", NARROW)
def test_a_narrow_terminal_is_enough(daemon: Instance, in_columns: InColumns, command: str, columns: int) -> None:
    daemon.configure("vm1-network-card-0", 'device = "probe"\nautostart = false')
    daemon.reload()
    shown = in_columns(columns, *command.split())
    lines = [line.rstrip() for line in shown.split("\n")]
    assert max(map(len, lines)) <= columns, shown
    for text in NARROW[command]:
        assert any(re.search(text, line) for line in lines), shown


def test_a_wide_terminal_shows_every_column(in_columns: InColumns) -> None:
    wide, narrow = (in_columns(columns, "list") for columns in (120, 40))
    assert re.search(r"name +device +state +for +client +memory +restarts *\n", wide)
    assert re.search(r"name .*state .*client", narrow)
    assert "restarts" not in narrow
