"""``bellwire view`` as a command."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bellwired.commands.cli import main
from operating.instance import Instance


@pytest.mark.daemon
def test_a_screenshot_shows_the_device_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    with Instance(tmp_path) as daemon:
        daemon.configure("bellfry", 'device = "bell"')
        daemon.reload()
        picture = tmp_path / "view.svg"
        assert main(["view", *daemon.places, "bellfry", "--screenshot", str(picture)]) == 0
        drawn = picture.read_text()
    assert "bellfry" in drawn
    assert not re.search(r"url\((?!#)|@import|href=", drawn)


def test_a_wrong_name_is_an_error_before_the_screen_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", "--runtime-dir", str(tmp_path), "nosuch"]) == 1
    assert "no daemon is running there" in capsys.readouterr().err


def test_without_a_terminal_it_says_how_else_to_look(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bellwired", "view", "--runtime-dir", str(tmp_path)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    told, hint = done.stderr.splitlines()
    assert told == "bellwire: the view needs a terminal"
    assert "--web shows it in a browser" in hint


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--port", "80"), "--port is for --web"),
        (("--web", "--port", "65536"), "expected a port, 0 to 65535"),
        (("--web", "--screenshot", "view.svg"), "argument --screenshot: not allowed with argument --web"),
    ],
)
def test_flags_that_do_nothing_are_refused(
    words: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["view", *words])
    assert problem in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main(["view"]) == 1
    assert "pip install 'bellwire[view]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_loads_without_the_extra() -> None:
    code = "import sys; sys.modules['textual'] = None; from bellwired.commands.cli import parser; parser()"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
