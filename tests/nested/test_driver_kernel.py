"""What lockdep, KASAN, UBSAN and kmemleak find in a module: ``bellwire boot`` and the pytest plugin tell it as errors.

The kernel is one that a user would build for a driver: it has modules, the checkers and debug information.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bellwired.commands.boot import FAILED
from daemon.commands import COMMAND
from nested.errors import LackError
from nested.kernel import driver_tree

pytestmark = [pytest.mark.nested, pytest.mark.long]

SOURCE = Path(__file__).parents[1] / "guest" / "broken"
PATIENCE = 1500
BUSY = "rcupdate.rcu_cpu_stall_timeout=300"
"""For the kernel: a host with much to do is no mistake of the module."""
FOUND = {
    "invert": ("lockdep", "WARNING: possible circular locking dependency detected", "mutex_lock(other)"),
    "freed": ("KASAN", "BUG: KASAN: ", "WRITE_ONCE(freed[3]"),
    "shift": ("UBSAN", "UBSAN: shift-out-of-bounds in ", "1 << READ_ONCE(bits)"),
    "lose": ("memory leak", "unreferenced object 0x", "lost = kmalloc"),
}
"""What is reported for each mistake of the module, by its kind, its title, and the line that makes it."""
TESTS = """
import pytest
from bellwire.pytest import machine

@machine(devices=["edu"], module="broken/broken.ko", root="minimal", memory=256 << 20, timeout=300)
@pytest.mark.parametrize("mistake", ["none", "invert", "freed", "shift", "lose"])
def test_it(vm, mistake):
    vm.run(f"printf {mistake} >/proc/broken")
"""


@pytest.fixture(scope="module")
def tree() -> Path:
    try:
        return driver_tree(lambda text: None)
    except LackError as error:
        pytest.skip(f"no kernel could be built: {error} {error.hint}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checked")
    shutil.copytree(SOURCE, folder / "broken")
    (folder / "test_broken.py").write_text(TESTS)
    return folder


@pytest.fixture(scope="module")
def booted(tree: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """One run of ``bellwire boot`` in which the module makes all mistakes."""
    script = f"for mistake in {' '.join(FOUND)}; do printf $mistake >/proc/broken; done"
    words = ["boot", "--kernel", str(tree), "--minimal", "--memory", "256", "--append", BUSY]
    words += ["--build", "broken", "--module", "broken/broken.ko"]
    return subprocess.run(
        [*COMMAND, *words, "--", "sh", "-c", script],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


@pytest.fixture(scope="module")
def failures(tree: Path, folder: Path, booted: object) -> dict[str, str]:
    """The failures of tests that make one mistake each; empty for one that passed."""
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=report.xml", "--bellwire-required"]
    words += ["--bellwire-append", BUSY]
    done = subprocess.run(
        [*words, "--bellwire-kernel", str(tree), "test_broken.py"],
        cwd=folder,
        env=os.environ | {"PYTEST_ADDOPTS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    cases = ET.parse(folder / "report.xml").iter("testcase")
    return {case.get("name", ""): "\n".join(child.text or "" for child in case) for case in cases}


def source_of(text: str) -> str:
    """Where the module does something, as a decoded report names it."""
    lines = (SOURCE / "broken.c").read_text().splitlines()
    return f"broken.c:{1 + next(number for number, each in enumerate(lines) if text in each)}"


def test_the_command_fails_because_of_the_reports(booted: subprocess.CompletedProcess[str]) -> None:
    assert booted.returncode == FAILED, booted.stderr
    assert "bellwire: the guest's kernel reports: WARNING: possible circular locking" in booted.stderr
    assert "(and 4 more)" in booted.stderr  # the kernel itself counts the objects that are lost


@pytest.mark.parametrize("mistake", FOUND)
def test_the_command_shows_each_report_with_the_line_that_made_it(
    booted: subprocess.CompletedProcess[str], mistake: str
) -> None:
    kind, title, code = FOUND[mistake]
    reports = booted.stderr.split("the guest's kernel has reported (")
    (report,) = (each for each in reports if each.startswith(f"{kind}):\n") and title in each)
    assert re.search(rf"\+0x\w+/0x\w+ \[broken\] \([^)]*{re.escape(source_of(code))}", report), report


def test_a_test_that_makes_no_mistake_passes(failures: dict[str, str]) -> None:
    assert failures["test_it[none]"] == ""


@pytest.mark.parametrize("mistake", FOUND)
def test_a_test_fails_by_the_report_of_its_mistake(failures: dict[str, str], mistake: str) -> None:
    kind, title, code = FOUND[mistake]
    failure = failures[f"test_it[{mistake}]"]
    assert re.search(rf"GuestReport: the guest's kernel says: .*{re.escape(title)}", failure), failure
    assert f"the guest's kernel: {kind}" in failure
    assert source_of(code) in failure
