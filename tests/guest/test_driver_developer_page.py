"""docs/driver-developer.md: its commands run as they stand, in their order."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

from docs.documents import DOCS, blocks

PAGE = DOCS / "driver-developer.md"
INSTALLED = {"pip install 'bellwire[pytest]'": "bellwire", "pip install pytest-xdist": "pytest-xdist"}
"""What is installed already where tests run; tests/fresh installs the package."""

pytestmark = [pytest.mark.guest, pytest.mark.long]


def lines() -> list[str]:
    """The commands of the page."""
    return [line for block in blocks(PAGE, "sh") for line in block.text.splitlines()]


def test_the_page_installs_what_is_there() -> None:
    assert [line for line in lines() if line.startswith("pip ")] == list(INSTALLED)
    assert all(metadata(name) for name in INSTALLED.values())
    assert "pytest" in metadata("bellwire").get_all("Provides-Extra", [])


def test_the_commands_of_the_page_run_in_their_order(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "BELLWIRE_REQUIRED": "1",
    }
    folder = tmp_path
    for line in lines():
        if line in INSTALLED:
            continue
        if line.startswith("cd "):
            folder /= line.removeprefix("cd ")
            (patch,) = blocks(PAGE, "diff")
            (folder / "copied.diff").write_text(patch.text)
            continue
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        if line.startswith("bellwire boot "):
            assert "mover works: 40 copies of 64 bytes" in done.stdout
        if line.startswith("pytest"):
            assert "skipped" not in done.stdout, done.stdout
    assert (folder / "report.xml").exists()
