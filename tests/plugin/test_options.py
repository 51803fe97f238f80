"""Where no machine can be had, and what the plugin costs where nobody asks for one."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import pytest

from bellwired.testing.tools import NotHere, Tools
from plugin.conftest import Trial

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WANTS = "@machine(devices=[Copier])\ndef test_it(vm): pass"
COST = """
import sys
import bellwired.testing.plugin
print(*sorted(name for name in sys.modules if name.partition(".")[0] in ("bellwire", "vfio_user", "rich", "asyncio")))
"""


@pytest.fixture
def nothing(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """No QEMU is here, and none can be fetched."""

    def plan(*_: Any) -> NoReturn:
        raise NotHere("no QEMU 10.1.1 or newer, and no network")

    monkeypatch.setattr(Tools, "plan", plan)
    return trial


def test_a_test_without_a_machine_skips_with_the_reason(nothing: Trial) -> None:
    result = nothing(WANTS, "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED * no machine: no QEMU 10.1.1 or newer, and no network"])


@pytest.mark.parametrize("by", ["option", "environment"])
def test_it_fails_if_machines_are_required(nothing: Trial, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "environment":
        monkeypatch.setenv("BELLWIRE_REQUIRED", "1")
    result = nothing(WANTS, *(["--bellwire-required"] if by == "option" else []))
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["no machine: no QEMU 10.1.1 or newer, and no network"])


def test_zero_requires_nothing(nothing: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELLWIRE_REQUIRED", "0")
    nothing(WANTS).assert_outcomes(skipped=1)


def test_a_machine_that_did_not_start_is_not_tried_for_each_test(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    from bellwired.guest.errors import MachineError
    from plugin.near import Near

    tries = []

    def start(_: object) -> NoReturn:
        tries.append(1)
        raise MachineError("the guest has not booted in 120 s", "try more memory", console="Kernel panic - no init")

    monkeypatch.setattr(Near, "start", start)
    result = trial("""
pytestmark = machine(devices=[Copier])
def test_one(vm): pass
def test_two(vm): pass
""")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        [
            "E *MachineError: the guest has not booted in 120 s",
            "E *try more memory",
            "*the guest's console*",
            "Kernel panic - no init",
            "the machine could not be started for a test before this one: the guest has not booted in 120 s",
        ]
    )
    assert len(tries) == 1


def test_a_run_that_uses_no_machine_imports_nothing_of_the_sdk() -> None:
    done = subprocess.run([sys.executable, "-c", COST], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow  # it starts pytest
def test_it_can_be_turned_off(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pytest", "-p", "no:bellwire", "--bellwire-required"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "unrecognized arguments: --bellwire-required" in done.stderr


def test_its_options_are_in_the_help(trial: Trial) -> None:
    result = trial("", "--help")
    result.stdout.fnmatch_lines(
        ["drivers in a Linux guest (bellwire):", "*--bellwire-required*", "*--bellwire-kernel*"]
    )
    result = trial("", "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.bellwire(devices, module=...): *"])


def test_pytest_finds_the_plugin_by_its_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"bellwire": "bellwired.testing.plugin"}
    assert any(word.startswith("pytest>=") for word in project["optional-dependencies"]["pytest"])


@pytest.mark.parametrize("id", ["2nd", "a,b", "my card"])
def test_a_name_that_qemu_does_not_take_is_refused_where_it_is_written(trial: Trial, id: str) -> None:
    result = trial(f"@machine(devices=[device(Copier, id={id!r})])\ndef test_it(vm): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"E *ValueError: id='{id}': expected a letter, then letters, digits, - . or _"])
