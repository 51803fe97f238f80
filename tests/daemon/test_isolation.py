"""A folder that others may write, in which root runs the commands: no code of it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bellwired.demo.spawn import device_process
from daemon.commands import PATIENCE

pytestmark = pytest.mark.daemon

MODULES = ("msgspec", "rich", "asyncvarlink", "vfio_user", "bellwire", "logging", "argparse")
BIN = Path(sys.executable).parent


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of each name that Bellwire imports; each leaves a file when it runs."""
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text("open(__file__ + '.ran', 'w').close()\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return tmp_path


def ran(trap: Path) -> list[str]:
    return sorted(file.name for file in trap.glob("*.ran"))


@pytest.mark.parametrize(
    "words",
    [[BIN / "bellwire"], [BIN / "bellwired"], [sys.executable, "-m", "bellwired"]],
    ids=["bellwire", "bellwired", "python -m bellwired"],
)
def test_a_command_imports_nothing_from_the_current_folder(trap: Path, words: list[str]) -> None:
    done = subprocess.run([*words, "--help"], capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, ran(trap)) == (0, []), done.stderr


def test_the_demos_device_process_imports_nothing_from_the_current_folder(trap: Path) -> None:
    with device_process("bell"):
        pass
    assert ran(trap) == []
