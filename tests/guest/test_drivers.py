"""Drivers that pytest tests in a real guest: the example, failing tests, new devices, the examples for CI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bellwired.commands.template import KINDS, write
from docs.documents import CI, DOCS, ROOT, blocks, ci_lines

EXAMPLE = ROOT / "examples/copier"
PATIENCE = 400  # seconds, on a busy host
MISTAKE = """\
	if (bytes == 13)
		*(volatile int *)(unsigned long)bytes = 1;
	if (!bytes"""
MORE = """

@machine(devices=[Copier], module="driver/copier.ko")
def test_it_begins_anew(vm):
    assert vm.device(Copier).count == 0
    assert vm.run("test -c /dev/copier").status == 0


@machine(devices=[Copier], module="driver/copier.ko")
def test_that_fails(vm):
    vm.run("copier-test 8192", check=True)
    assert vm.device(Copier).count == 1


@machine(devices=[Copier], module="driver/copier.ko")
def test_that_says_nothing_of_an_oops(vm):
    vm.run("copier-test 13")
"""
FUNCTIONS = """
from bellwire import PciDevice
class Engine(PciDevice, vendor=0x1234, device=1, class_code=0x088000): pass
class Console(PciDevice, vendor=0x1234, device=2, class_code=0x070000): pass
functions = [Engine, Console]
"""
PLACES = """
from bellwire.pytest import machine

@machine(devices=["./card.py", "edu"], root_port={root_port}, root="minimal")
def test_it(vm):
    there = vm.run("cd /sys/bus/pci/devices; for i in {places}; do cat $i/device; done", check=True).stdout
    assert there.split() == [b"0x0001", b"0x0002", b"0x11e8"]
"""
pytestmark = pytest.mark.guest


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder``. The plugin is there, even if this environment was installed before it was."""
    plugin = "-p no:bellwire -p bellwired.testing.plugin -p no:cacheprovider"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTEST_ADDOPTS": plugin},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def skipped_for(done: subprocess.CompletedProcess[str]) -> None:
    """Skip where no machine can be had, with the reason that pytest has given."""
    reason = re.search(r"no machine: .*", done.stdout)
    if reason:
        pytest.skip(reason[0])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The failures of the example's tests, and of more like it, by the test's name; empty for those that passed."""
    folder = tmp_path_factory.mktemp("copier") / "copier"
    shutil.copytree(EXAMPLE, folder)
    driver, test = folder / "driver/copier.c", folder / "test_copier.py"
    code = driver.read_text()
    assert code.count("\tif (!bytes") == 1
    driver.write_text(code.replace("\tif (!bytes", MISTAKE))
    test.write_text(test.read_text() + MORE)
    done = run(folder, "pytest", "-rs", "--junitxml=report.xml")
    skipped_for(done)
    cases = ET.parse(folder / "report.xml").iter("testcase")
    return {case.get("name", ""): "\n".join(child.text or "" for child in case) for case in cases}


def test_the_example_passes(results: dict[str, str]) -> None:
    assert results["test_copy"] == ""


def test_between_two_tests_the_device_is_reset_and_the_driver_loaded_again(results: dict[str, str]) -> None:
    assert results["test_it_begins_anew"] == ""


def test_junits_xml_has_commands_console_registers_counters_and_trace(results: dict[str, str]) -> None:
    failure = results["test_that_fails"]
    assert "assert 8192 == 1" in failure
    assert re.search(r"^copier-test 8192: status 0, ", failure, re.MULTILINE)
    assert "test_copier.py::test_that_fails begins" not in failure
    assert "status = 0x1 (DONE)" in failure
    assert "count = 0x2000" in failure
    assert re.search(r"counters -+\n.*interrupts 1", failure)
    assert re.search(r"dma     read 8192 bytes: .*\n(.*\n)*.*hook    copy\(\)", failure)


def test_an_oops_fails_a_test_that_says_nothing_of_it(results: dict[str, str]) -> None:
    failure = results["test_that_says_nothing_of_an_oops"]
    assert "GuestReport" in failure
    assert "BUG: kernel NULL pointer dereference, address: 000000000000000d" in failure
    assert re.search(r"RIP: 0010:copier_write\+0x\w+/0x\w+ \[copier\] \(copier\.c:\d+\)", failure)


def test_a_new_device_passes_what_ci_runs(tmp_path: Path) -> None:
    write("x", tmp_path, "dma-ring")
    (line,) = {ci_lines(file)[1] for file in CI}
    if not os.environ.get("BELLWIRE_REQUIRED"):
        line = line.replace("--bellwire-required", "")
    done = run(tmp_path, *line.split())
    skipped_for(done)
    assert done.returncode == 0, done.stdout
    suites = ET.parse(tmp_path / "report.xml").getroot()
    assert {case.get("classname") for case in suites.iter("testcase")} >= {"test_x", "test_x_driver"}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_device_of_each_kind_passes(kind: str, tmp_path: Path) -> None:
    written = run(tmp_path, "bellwire", "new", "--kind", kind, "x")
    assert written.returncode == 0, written.stderr
    done = run(tmp_path / "x", "pytest", "-rs")
    skipped_for(done)
    assert done.returncode == 0, done.stdout
    assert " skipped" not in done.stdout


@pytest.mark.long
def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "copier")
    example, parameters, under_faults = blocks(DOCS / "testing-drivers.md", "python")
    assert example.text == (EXAMPLE / "test_copier.py").read_text().partition("\n\n")[2]
    (tmp_path / "copier/test_page.py").write_text(parameters.text + under_faults.text)
    done = run(tmp_path / "copier", "pytest", "-rs")
    skipped_for(done)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("root_port", "places"),
    [(False, "0000:00:01.0 0000:00:01.1 0000:00:02.0"), (True, "0000:01:00.0 0000:01:00.1 0000:02:00.0")],
)
def test_functions_and_root_ports_are_where_the_test_says(root_port: bool, places: str, tmp_path: Path) -> None:
    (tmp_path / "card.py").write_text(FUNCTIONS)
    (tmp_path / "test_card.py").write_text(PLACES.format(root_port=root_port, places=places))
    done = run(tmp_path, "pytest", "--bellwire-required")
    assert done.returncode == 0, done.stdout
