"""bellwire fuzz-driver refuses what it cannot do before it boots anything, and says what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellwired.commands import fuzz_driver
from bellwired.commands.cli import main
from bellwired.errors import CommandError
from bellwired.guest.campaign import Found, Result


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("bell",), "bell needs --script"),
        (("nvme", "--p", "2"), "option p=2: expected 0.0 to 1.0"),
        (("nvme", "--script", "/not/there"), "--script /not/there"),
        (("nvme", "--output", "/not/there/x.toml"), "--output /not/there/x.toml: there is no folder /not/there"),
        (("nvme", "--output", "found_1.toml"), "found_1.toml: a scenario's name has small letters"),
    ],
)
def test_a_mistake_is_told_before_a_boot(words: tuple[str, ...], why: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fuzz-driver", *words]) == 1
    assert why in capfd.readouterr().err


def test_more_changes_than_a_scenario_has_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fuzz-driver", "nvme", "--changes", "17"])
    assert "at most 16 expected, got 17" in capfd.readouterr().err


CHANGE = {"fault": "changed-read", "at": 3, "register": "vs", "xor": 1}


def found(again: bool) -> Result:
    result = Result(runs=3, found=Found("oops", "BUG: x", "BUG: x\nRIP: y"), seed=3, all=[CHANGE, CHANGE])
    result.changes["changed-read vs"] = 2
    result.least, result.again = [CHANGE], again
    return result


@pytest.mark.parametrize(("again", "said"), [(True, "1 of 2 changes lead to it"), (False, "it did not happen again")])
def test_what_was_found_is_told_and_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], again: bool, said: str
) -> None:
    result = found(again)
    path = tmp_path / "found.toml"
    assert fuzz_driver._report(result, "nvme", path) == fuzz_driver.FOUND
    out = capfd.readouterr().out
    assert said in out
    assert "  changed-read vs: 2\n" in out
    assert 'about = "What seed 3 has led to: oops: BUG: x"' in path.read_text()


def test_what_cannot_be_written_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError, match=r"x\.toml: No such file or directory"):
        fuzz_driver._report(found(again=True), "nvme", tmp_path / "gone" / "x.toml")
    out = capfd.readouterr().out
    assert "RIP: y" in out
    assert 'register = "vs"' in out


def test_nothing_found_is_status_0(capfd: pytest.CaptureFixture[str]) -> None:
    assert fuzz_driver._report(Result(runs=3), "nvme", Path("x.toml")) == 0
    assert capfd.readouterr().out == "3 runs, 0 changes\nnothing found\n"
