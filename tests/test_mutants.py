"""The tool that makes small mistakes (``make mutants``): which it makes, and that it can tell who notices."""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mutants import __main__ as command
from mutants.__main__ import equivalent
from mutants.sites import mutated, sites

SOURCE = '''
"""Text."""

LIMIT = 5
FIRST = 1 << 0


class Thing:
    """Text."""

    __slots__ = ("size",)

    def check(self, size: int | None = None) -> bool:
        """Text."""
        if size < LIMIT and not self.full:
            raise ValueError("too small")
        log.debug("checked %d", 1)
        self.size = size + 1
        return True

    @overload
    def nothing(self, number: int = 7) -> bool: ...
    def nothing(self) -> bool:
        return False
'''

CHANGES = {
    ("module", "5 -> 6"),
    ("module", "1 << 0 -> 2 << 0"),
    ("module", "1 << 0 -> 1 << 1"),
    ("Thing.check", "size < LIMIT and (not self.full) -> size < LIMIT or not self.full"),
    ("Thing.check", "size < LIMIT and (not self.full) -> size < LIMIT and self.full"),
    ("Thing.check", "size < LIMIT -> size <= LIMIT"),
    ("Thing.check", "raise ValueError('too small') -> pass"),
    ("Thing.check", "self.size = size + 1 -> pass"),
    ("Thing.check", "size + 1 -> size - 1"),
    ("Thing.check", "size + 1 -> size + 2"),
    ("Thing.check", "return True -> return None"),
    ("Thing.check", "True -> False"),
    ("Thing.nothing", "False -> True"),
}
FEATURES = "devices/bellwire/bundled/nvme/features.py"
BRACKETS = str.maketrans("", "", "()")  # where ast.unparse puts them is Python's own affair


def test_mistakes_are_made_in_code_and_not_in_texts_types_and_logs() -> None:
    found = [(site.where, site.change.translate(BRACKETS)) for site in sites("f", SOURCE)]
    assert sorted(found) == sorted((where, change.translate(BRACKETS)) for where, change in CHANGES)


def test_each_is_one_mistake() -> None:
    whole = ast.unparse(ast.parse(SOURCE)).splitlines()
    for site in sites("f", SOURCE):
        changed = ast.unparse(mutated(SOURCE, site.number)).splitlines()
        assert sum(one != other for one, other in zip(whole, changed, strict=True)) == 1
        (line,) = (number for number, (one, other) in enumerate(zip(whole, changed, strict=True)) if one != other)
        assert line + 1 <= site.lines.stop + 2


def test_a_constant_is_tried_with_the_tests_that_name_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "test_files", lambda: [Path("tests/nvme/test_nvme_numbers.py")])
    command.importers.cache_clear()
    assert "tests/nvme/test_nvme_numbers.py" in command.importers()[command.module(FEATURES)]
    reached = {
        "files": {FEATURES: {"999": [1]}},
        "tests": ["tests/nvme/test_nvme_numbers.py::test_hosts_know_a_thing_by_its_number", "tests/other.py::test"],
        "seconds": {
            "tests/nvme/test_nvme_numbers.py::test_hosts_know_a_thing_by_its_number": 0,
            "tests/other.py::test": 0,
        },
    }
    tried: list[str] = []
    site = next(site for site in sites(FEATURES, Path(FEATURES).read_text()) if site.where == "Select")
    monkeypatch.setattr(command, "failing", lambda _, order, __: tried.extend(order))
    command.caught_by(site, reached)
    command.importers.cache_clear()
    assert tried == reached["tests"]


def test_a_changed_test_is_measured_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measured: list[str] = []

    def measure(_: object, into: Path, of: str) -> dict[str, str]:
        measured.append(of)
        into.write_text(json.dumps({"of": of}))
        return {"of": of}

    test = tmp_path / "test_new.py"
    test.write_text("")
    monkeypatch.setattr(command, "FOLDER", tmp_path)
    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(command, "test_files", lambda: [test])
    for text in ("", "", "assert True", "assert True"):
        test.write_text(text)
        command.reach(anew=False)
    assert len(set(measured)) == len(measured) == 2


@pytest.mark.slow
def test_a_module_that_is_named_like_a_test_gets_its_mistake(tmp_path: Path) -> None:
    (tmp_path / "build/mutants").mkdir(parents=True)
    (tmp_path / "self_test.py").write_text("ONE = 1\n")
    test = tmp_path / "test_it.py"
    test.write_text("import self_test\ndef test_it():\n    assert self_test.ONE == 1\n")
    code = (
        "import ast; from mutants.trial import attempt\n"
        "print(attempt('self_test.py', ast.parse('ONE = 2'), ['test_it.py::test_it'], 60)[0])"
    )
    words = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": f"{os.getcwd()}:{tmp_path}"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "test_it.py::test_it\n"


@pytest.mark.slow
def test_what_is_tried_ends_with_the_tool(tmp_path: Path) -> None:
    """Even if the tool is killed."""
    code = (
        "import os, time; from mutants.trial import _forked\n"
        "_forked(lambda: (os.write(said, b'%d' % os.getpid()), time.sleep(60)), 60)"
    )
    (tmp_path / "build/mutants").mkdir(parents=True)
    heard, said = os.pipe()
    words = [sys.executable, "-c", f"said = {said}\n{code}"]
    tool = subprocess.Popen(words, cwd=tmp_path, pass_fds=[said], env={**os.environ, "PYTHONPATH": os.getcwd()})
    os.close(said)
    with os.fdopen(heard, "rb") as pipe:
        assert pipe.read(1)
        tool.kill()
        tool.wait()
        pipe.read()  # ends when no process has the pipe


def test_what_is_listed_as_equivalent_is_still_there() -> None:
    listed = equivalent()
    named = {name.partition(" :: ")[0] for name in listed}
    today = {site.name for file in named for site in sites(file, Path(file).read_text())}
    assert listed <= today, "changed or gone: take these lines out of mutants/equivalent.txt"


@pytest.mark.parametrize(("caught", "good"), [(19, True), (18, False)])
def test_a_sample_of_which_95_per_cent_are_caught_is_good(
    caught: int, good: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = iter(["a test"] * caught + [""] * 20)
    monkeypatch.setitem(command.AREAS, "small", (["mutants/trial.py"], []))
    monkeypatch.setattr(command, "caught_by", lambda *_: next(results))
    options = argparse.Namespace(only=None, seed=1, number=20, tests=None)
    assert command.try_area("small", options, {}, set(), math.inf) is good
    assert (
        f"{caught} caught, {20 - caught} lived, 0 equivalent, 0 not tried: {5 * caught}.0 %" in capsys.readouterr().out
    )


def test_a_sample_of_which_nothing_could_be_tried_in_time_is_not_good(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(command.AREAS, "small", (["mutants/trial.py"], []))
    options = argparse.Namespace(only=None, seed=1, number=5, tests=None)
    assert not command.try_area("small", options, {}, set(), -math.inf)
    assert "5 not tried" in capsys.readouterr().out
