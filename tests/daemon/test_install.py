"""``make install``: everything where it belongs, and it runs from there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PLACES = [
    "usr/bin/bellwire",
    "usr/bin/bellwired",
    "usr/lib/bellwire/bellwired.toml",
    "usr/lib/systemd/system/bellwired.service",
    "usr/lib/systemd/system/bellwired.socket",
    "usr/lib/systemd/system/bellwire@.service",
    "usr/lib/systemd/system/bellwire@.socket",
    "usr/lib/systemd/catalog/bellwire.catalog",
    "usr/lib/sysusers.d/bellwire.conf",
    "usr/lib/tmpfiles.d/bellwire.conf",
    "usr/share/man/man1/bellwire.1",
    "usr/share/man/man5/bellwire-device.toml.5",
    "usr/share/man/man8/bellwired.8",
    "usr/share/bash-completion/completions/bellwire",
    "usr/share/zsh/site-functions/_bellwire",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("destination")
    done = subprocess.run(
        ["make", "install", f"DESTDIR={destination}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return destination


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_everything_is_where_it_belongs(installed: Path, place: str) -> None:
    assert (installed / place).is_symlink() or (installed / place).stat().st_size > 0


@pytest.mark.slow
def test_what_is_installed_runs_by_itself(installed: Path) -> None:
    python = installed / "usr/lib/bellwire/venv/bin/python"
    code = "from bellwired.commands.cli import main; raise SystemExit(main(['run', 'bell', '--print-capabilities']))"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout)["name"] == "bell"


@pytest.mark.slow
def test_no_trace_of_the_destination_is_left_in_the_commands(installed: Path) -> None:
    for name in ("bellwire", "bellwired"):
        assert str(installed) not in (installed / "usr/lib/bellwire/venv/bin" / name).read_text()


@pytest.mark.slow
def test_the_description_for_managers_names_the_command(installed: Path) -> None:
    about = json.loads((installed / "usr/share/vfio-user/50-bellwire.json").read_text())
    assert about["type"] == "pci"
    assert about["binary"] == "/usr/bin/bellwire"
