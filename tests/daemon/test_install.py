"""``make install`` and ``make uninstall``: by root, in a user's checkout, for all users, with a strict umask."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("protocol", "kvm", "devices", "daemon", "systemd", "docs/monitoring")
FILES = ("Makefile", "README.md", "LICENSE", "pyproject.toml", "constraints.txt", "hatch_build.py")
PREFIX = "/usr/local"
VENV = f"{PREFIX}/lib/bellwire/venv"


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    words = ('umask 027; exec make "$@"', "make", *words)
    done = subprocess.run(["sh", "-c", *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def checkout(scratch: Path) -> Path:
    """A copy of the project, which is another user's where the tests are root's."""
    copy = scratch / "checkout"
    copy.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    if os.geteuid() == 0:
        owner = pwd.getpwnam("nobody")
        for path in (copy, *copy.rglob("*")):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    return copy


@pytest.fixture(scope="module")
def installed(checkout: Path, scratch: Path) -> Path:
    destination = scratch / "destination"
    python = "/usr/bin/python3" if os.geteuid() == 0 else sys.executable  # that of the tests may be root's alone
    make(checkout, "install", f"PYTHON={os.path.realpath(python)}", f"PREFIX={PREFIX}", f"DESTDIR={destination}")
    return destination


@pytest.fixture(scope="module")
def wheel(installed: Path, checkout: Path) -> zipfile.ZipFile:
    (file,) = (checkout / "build/wheel").glob("*.whl")
    return zipfile.ZipFile(file)


def metadata(wheel: zipfile.ZipFile, name: str) -> Message:
    (found,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return Parser().parsestr(wheel.read(found).decode())


@pytest.mark.slow
def test_what_is_installed_runs_by_itself(installed: Path) -> None:
    words: list[str | Path] = [installed / VENV[1:] / "bin/python", "-IB", installed / VENV[1:] / "bin/bellwire"]
    done = subprocess.run([*words, "run", "bell", "--print-capabilities"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["name"] == "bell"


@pytest.mark.slow
def test_no_trace_of_the_destination_or_the_checkout_is_left(installed: Path, checkout: Path) -> None:
    traces = (str(installed).encode(), str(checkout).encode())
    found = [path for path in installed.rglob("*") if path.is_file() and any(t in path.read_bytes() for t in traces)]
    assert found == []
    assert list(installed.rglob("*.pyc")), "the byte code is there, and names where it will be"


@pytest.mark.slow
def test_every_user_can_read_what_was_installed_whatever_the_umask(installed: Path) -> None:
    for path in (path for path in installed.rglob("*") if not path.is_symlink()):
        assert path.stat().st_mode & stat.S_IROTH, path
        assert not path.is_dir() or path.stat().st_mode & stat.S_IXOTH, path


@pytest.mark.slow
def test_commands_and_units_name_the_prefix(installed: Path) -> None:
    assert f"{VENV}/bin/bellwire" in (installed / "usr/local/bin/bellwire").read_text()
    assert (installed / VENV[1:] / "bin/bellwire").read_text().startswith(f"#!{VENV}/bin/python")
    unit = (installed / "usr/local/lib/systemd/system/bellwired.service").read_text()
    assert "ExecStart=/usr/local/bin/bellwired\n" in unit


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_root_leaves_nothing_of_its_own_in_a_users_checkout(installed: Path, checkout: Path) -> None:
    assert (checkout / "build/wheel").exists()
    assert [path for path in checkout.rglob("*") if path.lstat().st_uid == 0] == []


@pytest.mark.slow
def test_it_installs_no_tool_that_only_developers_need(installed: Path, checkout: Path) -> None:
    for folder in (installed, checkout):
        assert not list(folder.rglob("site-packages/pytest"))
        assert not list(folder.rglob("site-packages/mypy"))


@pytest.mark.slow
def test_the_wheel_is_for_what_it_runs_on(wheel: zipfile.ZipFile) -> None:
    about = metadata(wheel, "WHEEL")
    assert about["Root-Is-Purelib"] == "false"
    assert re.fullmatch(r"py3-none-manylinux_\d+_\d+_x86_64", about["Tag"])


@pytest.mark.slow
def test_the_wheel_has_units_and_micro_guests(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {"bellwired/systemd/bellwired.service", "bellwired/systemd/user/bellwired.service"} <= names
    assert "bellwire_vmm/guests/bin/bell.bin" in names


@pytest.mark.slow
def test_the_wheels_text_has_no_link_into_the_source(wheel: zipfile.ZipFile) -> None:
    about = metadata(wheel, "METADATA")
    text = str(about.get_payload())
    assert "Write a PCI device in Python" in text
    assert [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link] == []
    assert set(about.get_all("Provides-Extra") or ()) == {"dev", "maps", "pytest", "systemd", "test", "view"}


@pytest.mark.slow
def test_uninstall_leaves_nothing(installed: Path, checkout: Path, scratch: Path) -> None:
    copy = scratch / "copy"
    shutil.copytree(installed, copy, symlinks=True)
    make(checkout, "uninstall", f"PREFIX={PREFIX}", f"DESTDIR={copy}")
    assert [path for path in copy.rglob("*") if not path.is_dir() or "bellwire" in path.name] == []


def test_the_packages_agree_on_the_version_and_on_what_debian_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    debian = ROOT / "packaging/debian"
    assert (debian / "changelog").read_text().startswith(f"bellwire ({project['version']}) ")
    uses = re.findall(r"^DEB_USES := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    control = (debian / "control").read_text().partition("\nPackage:")[0]
    assert all(re.search(rf"^ +{need} \| python3,?$", control, re.MULTILINE) for need in uses)


@pytest.mark.parametrize("what", ["another version", "nothing"])
def test_a_virtual_environment_whose_python_has_changed_is_made_anew(tmp_path: Path, what: str) -> None:
    """After the distribution's upgrade its link leads to a Python that knows nothing of it, or nowhere."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "hatch_build.py"):
        (tmp_path / name).touch()
    for name in (
        "protocol/vfio_user",
        "kvm/kvm_ioctls",
        "kvm/bellwire_vmm",
        "devices/bellwire",
        "daemon/bellwired",
        "systemd",
    ):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    if what == "nothing":
        python.symlink_to(tmp_path / "python3.10")
    else:
        python.write_text("#!/bin/sh\nexit 1\n")  # no module named pip
        python.chmod(0o755)
    (tmp_path / ".venv/.run").touch()
    said = make(tmp_path, "--dry-run", "demo", f"PYTHON={sys.executable}").stdout
    assert f"{sys.executable} -m venv --clear .venv" in said
    assert "pip install" in said
