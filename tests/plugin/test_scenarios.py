"""Tests that run under scenarios of faults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from plugin.conftest import Trial

pytestmark = pytest.mark.slow

NEAR = """
from bellwire.pytest import scenarios
from bellwire.testing import Guest
"""
LENIENT = ("-W", "default")
"""A warning is none of this suite's own: some faults do not strike."""


def test_a_test_without_a_machine_runs_once_for_each_scenario(trial: Trial) -> None:
    result = trial(
        NEAR
        + """
@scenarios("all-ones", "slow")
def test_it(scenario):
    with Guest(Copier, filters=scenario.faults(Copier)) as guest:
        guest.advance(1)
        assert guest.read(Copier.count) == (0xFFFF_FFFF if scenario.name == "all-ones" else 7)
""",
        "-v",
        "--junitxml=report.xml",
    )
    result.assert_outcomes(passed=2)
    names = re.findall(r'name="(test_it\[[^"]*)"', Path("report.xml").read_text())
    assert names == ["test_it[all-ones]", "test_it[slow]"]


def test_a_test_with_a_machine_has_the_faults_in_its_devices(trial: Trial) -> None:
    result = trial(
        NEAR
        + """
@machine(devices=[Copier])
@scenarios("lost-irq", "./mine.toml")
def test_it(vm):
    read = vm.device(Copier).core.reader(0, 0x20, 4).read()
    assert int.from_bytes(read, "little") == SEEN.pop(0)

SEEN = [7, 0xFFFF_FFFF]
""",
        *LENIENT,
    )
    assert result.ret == pytest.ExitCode.INTERRUPTED  # the file is not there
    Path("mine.toml").write_text('about = "a"\ndriver = "b"\n[[fault]]\nfault = "all-ones"\n')
    result = trial.pytester.runpytest_inprocess("-p", "no:bellwire", "-p", "bellwired.testing.plugin", "-v", *LENIENT)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_it?lost-irq?*", "*test_it?mine?*"])


def test_the_next_test_has_no_faults(trial: Trial) -> None:
    trial(
        NEAR
        + """
@machine(devices=[Copier])
@scenarios("hung")
def test_one(vm):
    assert len(vm.device(Copier).core.device.faults) == 0

@machine(devices=[Copier])
def test_two(vm):
    assert int.from_bytes(vm.device(Copier).core.reader(0, 0x20, 4).read(), "little") == 7
""",
        *LENIENT,
    ).assert_outcomes(passed=2)


def test_a_test_in_which_nothing_strikes_is_told(trial: Trial) -> None:
    result = trial(
        NEAR
        + """
@scenarios("all-ones")
def test_too_early(scenario):
    with Guest(Copier, filters=scenario.faults(Copier)) as guest:
        assert guest.read(Copier.count) == 7

@scenarios("all-ones")
def test_without(scenario):
    with Guest(Copier):
        pass
""",
        *LENIENT,
    )
    result.assert_outcomes(passed=2, warnings=2)
    result.stdout.fnmatch_lines(
        [
            line
            for name in ("too_early", "without")
            for line in (f"test_it.py::test_{name}?all-ones?", "*: no fault of scenario all-ones has struck: *")
        ]
    )


def test_a_device_that_refuses_a_fault_has_none_of_the_scenario(trial: Trial) -> None:
    Path("mine.toml").write_text(
        'about = "a"\ndriver = "b"\n[[fault]]\nfault = "slow"\n[[fault]]\nfault = "wrong-vector"\n'
    )
    result = trial(
        NEAR
        + """
from bellwire.bundled.bell import Bell

@machine(devices=[Copier, Bell])
@scenarios("./mine.toml")
def test_it(vm):
    assert False
"""
    )
    result.stdout.fnmatch_lines(["bell1: slow:*", "bell1: wrong-vector:*"])
    result.stdout.no_fnmatch_line("copier0: slow:*")


def test_the_report_of_a_failing_test_counts_what_was_struck(trial: Trial) -> None:
    result = trial(
        NEAR
        + """
@machine(devices=[Copier])
@scenarios("slow")
def test_it(vm):
    assert False
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*faults*", "copier0: slow:by=2ms,scenario=slow: struck 0 of 0"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '@scenarios("lost-irk")\ndef test_it(scenario): pass',
            "there is no scenario lost-irk: did you mean lost-irq? (bellwire fault --list shows them",
        ),
        ('@scenarios("lost-irq")\ndef test_it(): pass', "runs under scenarios, and takes neither scenario nor vm"),
        ("@scenarios()\ndef test_it(scenario): pass", "scenarios(...) takes names of scenarios"),
    ],
)
def test_a_mistake_is_an_error_of_collection(trial: Trial, text: str, said: str) -> None:
    result = trial(NEAR + text)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert said in result.stdout.str()


def test_a_scenario_of_other_devices_is_an_error_of_the_test(trial: Trial) -> None:
    result = trial(NEAR + '@machine(devices=[Copier])\n@scenarios("nvme-fatal")\ndef test_it(vm): pass')
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*scenario nvme-fatal: it is for nvme, not for copier*"])


def test_the_fixture_without_a_mark_says_what_is_missing(trial: Trial) -> None:
    result = trial("def test_it(scenario): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*uses the fixture scenario and does not say which*"])
