"""What ``bellwire boot`` does with a command's end, with the agent on this machine in place of a guest's."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any, cast

import pytest

from bellwired.commands import boot_terminal
from bellwired.commands.boot_terminal import Screen, _Lines, _status
from bellwired.guest.console import Console
from bellwired.guest.errors import CommandTimeout
from bellwired.guest.machine import Machine
from booting.on_host import PATIENCE, Agent


class Guest:
    """A machine of which a console is all that is looked at."""

    console = Console()


def status(agent: Agent, *words: str, timeout: float | None = None) -> int:
    running, _, _ = agent.begin(*words)
    return _status(cast("Machine", Guest()), running, timeout, words)


def test_a_status_is_as_a_shell_has_it(agent: Agent) -> None:
    assert status(agent, "sh", "-c", "exit 3") == 3
    assert status(agent, "sh", "-c", "kill -TERM $$") == 143


def test_a_command_that_takes_too_long_is_killed(agent: Agent) -> None:
    with pytest.raises(CommandTimeout, match=r"sleep 100: not ended after 0\.05 s"):
        status(agent, "sleep", "100", timeout=0.05)


def test_lines_are_whole_however_their_bytes_come() -> None:
    seen: list[str] = []
    lines = _Lines(seen.append)
    for piece in (b"one\r\ntw", b"o\r", b"\nthree"):
        lines.take(piece)
    assert seen == ["one", "two"]


def test_a_devices_line_controls_no_terminal(capfd: Any) -> None:
    Screen().log("copier", "before\x1b[2Jafter")
    assert capfd.readouterr().err == "copier: before\\x1b[2Jafter\n"


def test_what_takes_long_is_told_and_what_does_not_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    told: queue.Queue[str] = queue.Queue()
    screen = Screen()
    monkeypatch.setattr(screen, "note", told.put)
    with screen.patience("this is quick"):
        pass
    monkeypatch.setattr(boot_terminal, "LONG", 0.01)
    with screen.patience("the guest still boots"):
        assert told.get(timeout=PATIENCE) == "the guest still boots"
    assert told.empty()


def test_a_file_that_takes_no_more_of_the_console_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    screen = Screen()
    monkeypatch.setattr(screen, "note", told.append)
    with screen.console(Path("/dev/full")) as take:
        assert take is not None
        take(b"Linux version 6\n")
        take(b"Command line\n")
    (line,) = told
    assert line.startswith("/dev/full: No space left on device: ")
