"""What ``bellwire new`` writes: for each kind, and for names that get into its way."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attached import Device, running
from bellwired.commands.cli import main
from bellwired.commands.template import KINDS, write
from bellwired.errors import CommandError
from bellwired.find import find_device
from bellwired.maps import from_device, to_c

ROOT = Path(__file__).parents[2]
PROJECT = str(ROOT / "pyproject.toml")
PLUGIN = ("-p", "no:bellwire", "-p", "bellwired.testing.plugin")
"""The plugin by its module: it is there even if this environment was installed before it had an entry point."""
every_kind = pytest.mark.parametrize("kind", KINDS)


def names_in(file: Path) -> list[str]:
    """The classes that a file defines."""
    return [node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("status", "plain"),
        ("guest_error", "plain"),
        ("none", "plain"),
        ("result", "dma-ring"),
        ("virtqueue", "virtio"),
        ("line_status", "serial"),
        ("pci_device", "framebuffer"),
    ],
)
def test_names_that_the_files_of_new_use_themselves_do_no_harm(name: str, kind: str, tmp_path: Path) -> None:
    device, test, *_ = write(name, tmp_path, kind)
    found = find_device(str(device))
    words = names_in(device)
    assert len(words) == len(set(words))
    assert found.name == name
    assert found.__name__ in words
    compile(test.read_text(), str(test), "exec")


@pytest.mark.parametrize("name", ["device", "page"])
def test_a_driver_has_no_structure_that_linux_has(name: str, tmp_path: Path) -> None:
    write(name, tmp_path, "dma-ring")
    driver = (tmp_path / "driver" / f"{name}.c").read_text()
    own = re.findall(rf"struct {name}(?!_\w)", driver)
    assert own == ["struct device"] * len(own)  # Linux's own, of which the driver has pointers
    assert f"struct {name}_card {{" in driver


@pytest.mark.parametrize("name", ["test", "tester", "test_card"])
def test_pytest_takes_no_device_for_a_class_of_tests(name: str, tmp_path: Path) -> None:
    device, *_ = write(name, tmp_path, "plain")
    assert not [each for each in names_in(device) if each.startswith("Test")]


def test_a_folder_in_which_no_driver_can_be_built_is_told(tmp_path: Path) -> None:
    written = write("thing", tmp_path / "my dir", "plain")
    assert "move it first" in written[tmp_path / "my dir/driver/Makefile"]


@pytest.mark.parametrize("name", ["struct", "sys", "pytest", "bellwire", "pathlib", "int", "static", "pci", "uart"])
def test_new_takes_no_name_that_its_files_need(name: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no name for a device"):
        write(name, tmp_path)


@every_kind
def test_a_kind_has_a_device_a_test_a_configuration_and_two_drivers(kind: str, tmp_path: Path) -> None:
    written = write("thing", tmp_path, kind)
    assert {str(path.relative_to(tmp_path)) for path in written} == {
        *("thing.py", "test_thing.py", "thing.toml", "driver/Makefile", "driver/thing.c", "driver/thing_regs.h"),
        *("driver/thing_user.py", "driver/user_pci.py", "test_thing_driver.py"),
    }
    assert all(written.values())
    for path in written:
        assert not re.search(r"@(name|NAME|Kind)@", path.read_text()), path
    header = (tmp_path / "driver/thing_regs.h").read_text()
    assert header == to_c.write(from_device.read(find_device(str(tmp_path / "thing.py"))))


@every_kind
def test_the_drivers_numbers_are_no_older_than_the_device(kind: str, tmp_path: Path) -> None:
    """Else make would write the header anew, and need the command for that."""
    write("thing", tmp_path, kind)
    made = (tmp_path / "driver/thing_regs.h").stat().st_mtime_ns
    assert made >= (tmp_path / "thing.py").stat().st_mtime_ns


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with a device of each kind."""
    for kind in KINDS:
        write(f"my_{kind.replace('-', '_')}", tmp_path / kind, kind)
    return tmp_path


def run(folder: Path, *words: str, **env: str) -> None:
    """Run one of Python's tools in ``folder``. It must find nothing."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@every_kind
def test_a_new_device_runs_in_its_box(kind: str, written: Path, tmp_path: Path) -> None:
    name = f"my_{kind.replace('-', '_')}"
    with running(Device(str(written / kind / f"{name}.py")), tmp_path / "running") as process:
        assert process.poll() is None


@pytest.mark.slow
def test_what_is_written_in_python_is_written_as_ours_is(written: Path) -> None:
    run(written, "ruff", "check", "-q", "--config", PROJECT, "--select", "E,F,W,B,UP,SIM", ".")
    run(written, "ruff", "format", "-q", "--config", PROJECT, "--check", ".")


@pytest.mark.slow
def test_the_tests_of_each_kind_pass(written: Path) -> None:
    folders = [str(written / kind) for kind in KINDS]
    words = ["-q", "-p", "no:cacheprovider", "-W", "error", "-c", os.devnull, *PLUGIN]
    run(written, "pytest", *words, "-m", "not bellwire", *folders)


@pytest.mark.slow
def test_the_driver_of_each_kind_has_tests(written: Path) -> None:
    """They are run in a guest by tests/guest/test_drivers.py."""
    folders = [str(written / kind) for kind in KINDS]
    words = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, *PLUGIN]
    run(written, "pytest", *words, "-m", "bellwire", "--collect-only", *folders)


@pytest.mark.slow  # mypy reads all of the SDK
def test_the_python_files_pass_a_strict_type_check(written: Path) -> None:
    files = [str(path) for path in written.glob("*/*.py")] + [str(path) for path in written.glob("*/driver/my_*.py")]
    places = ":".join(str(place) for place in [*written.glob("*"), written / "plain/driver"])
    run(written, "mypy", "--strict", "--config-file", PROJECT, *files, MYPYPATH=places)


def test_the_files_lie_in_a_folder_of_the_devices_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", "thing", "--kind", "dma-ring"]) == 0
    printed = capsys.readouterr().out
    assert "Try it: bellwire run ./thing/thing.py" in printed
    assert "Test it, in Linux too: pytest thing" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]
    assert main(["new", "thing"]) == 1
    assert "exists already" in capsys.readouterr().err


def test_a_kind_that_there_is_not_is_told_with_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["new", "thing", "--kind", "dma-rng"])
    assert "there is no 'dma-rng'; did you mean dma-ring?" in capsys.readouterr().err
    with pytest.raises(CommandError, match="there is no kind 'rng'"):
        write("thing", tmp_path, "rng")


def test_every_kind_has_its_folder_of_templates() -> None:
    folders = {path.name for path in (ROOT / "daemon/bellwired/templates").iterdir()}
    assert folders == {*KINDS, "common"}
