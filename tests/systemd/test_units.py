"""The units as systemd reads them: valid, hardened, and with a word in the catalog for each message."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bed import CHECKOUT
from bellwired import messages

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed"),
]
UNITS = CHECKOUT / "systemd"
EXPOSURE = 1.0
CATALOG = UNITS / "catalog/bellwire.catalog"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with nothing but what the units name, which makes ``systemd-analyze verify`` strict."""
    installed = tmp_path / "usr/lib/systemd/system"
    installed.mkdir(parents=True)
    for unit in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
        shutil.copy(unit, installed)
    for name in ("sysinit", "basic", "sockets", "shutdown", "multi-user"):
        (installed / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n")
    for command in ("usr/bin/bellwire", "usr/bin/bellwired", "bin/kill"):
        (tmp_path / command).parent.mkdir(exist_ok=True)
        (tmp_path / command).write_text("")
        (tmp_path / command).chmod(0o755)
    return tmp_path


def verify(root: Path, *units: str) -> subprocess.CompletedProcess[str]:
    words = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={root}", *units]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)


@pytest.mark.parametrize(
    "unit", ["bellwired.service", "bellwired.socket", "bellwire@edu.service", "bellwire@edu.socket"]
)
def test_a_unit_is_valid(unit: str, root: Path) -> None:
    done = verify(root, unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_key_would_be_found(root: Path) -> None:
    with (root / "usr/lib/systemd/system/bellwired.service").open("a") as unit:
        unit.write("[Service]\nProtectEverything=yes\n")
    done = verify(root, "bellwired.service")
    assert done.returncode
    assert "ProtectEverything" in done.stderr


@pytest.mark.parametrize("unit", ["bellwired.service", "bellwire@.service"])
def test_a_service_is_hardened(unit: str) -> None:
    words = ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE * 10:.0f}"]
    done = subprocess.run([*words, str(UNITS / unit)], capture_output=True, text=True, check=False)
    said = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert said, done.stderr
    assert float(said[1]) <= EXPOSURE, done.stdout
    assert done.returncode == 0


def test_every_message_is_explained_in_the_catalog() -> None:
    explained = re.findall(r"^-- ([0-9a-f]{32})$", CATALOG.read_text(), re.MULTILINE)
    known = [value for name, value in vars(messages).items() if name.isupper()]
    assert sorted(explained) == sorted(known)


def test_the_catalog_compiles(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    shutil.copy(CATALOG, folder)
    done = subprocess.run(
        ["journalctl", "--update-catalog", f"--root={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "var/lib/systemd/catalog/database").exists()
