"""The documents say what is so: their code runs, their commands parse, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bellwire.faults.scenario import find_scenario
from bellwired.commands.attach import qemu_command
from bellwired.commands.cli import parser
from bellwired.commands.describe import describe
from bellwired.find import find_device
from bellwired.settings import Device, decode
from bellwired.testing.tried import Tried
from docs.documents import DOCS, IDS, PAGES, ROOT, anchors, blocks, commands, links, prose, written_by_hand

LANGUAGES = {"python", "sh", "text", "toml", "json", "ini", "diff", "yaml"}
EXPECTED = {"README.md": 2, "writing-a-device.md": 25}  # tests: so that none is passed over in silence
README = ROOT / "README.md"
WIDEST = 118  # characters of a line: pages are read in terminals and in reviews, too
every_page = pytest.mark.parametrize("page", PAGES, ids=IDS)


def run(page: Path) -> list[str]:
    """Run the Python of a page in one namespace, each block's tests before the next block; the tests' names."""
    names: dict[str, Any] = {"__name__": page.stem.replace("-", "_")}
    tests: list[str] = []
    for block in blocks(page, "python"):
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
        for name in [name for name in names if name.lower().startswith("test") and name not in tests]:
            tests.append(name)
            try_out(names[name])
    return tests


def try_out(test: Any) -> None:
    """Do what pytest would. What takes a machine is tried out in tests/guest/test_drivers.py."""
    names = getattr(getattr(test, "__code__", None), "co_varnames", ())
    if "vm" in names:
        return
    if "scenario" in names:
        for name in test.pytestmark[0].args:
            scenario = Tried.of(find_scenario(name))
            test(scenario)
            assert scenario.struck, name
        return
    if isinstance(test, type):
        for method in (each for each in dir(test) if each.startswith("test_")):
            getattr(test(), method)()
    else:
        test()


@every_page
def test_the_code_of_a_page_runs_and_its_tests_pass(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples/copier")
    tests = run(page)
    assert len(tests) >= EXPECTED.get(IDS[PAGES.index(page)], 0)


@pytest.mark.slow  # mypy reads all of the SDK
def test_the_readmes_example_passes_a_strict_type_check(tmp_path: Path) -> None:
    example = tmp_path / "copier.py"
    example.write_text("\n\n".join(block.text for block in blocks(README, "python")))
    words = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(example)]
    done = subprocess.run(words, check=False, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout


@every_page
def test_every_block_says_what_it_is(page: Path) -> None:
    assert {block.language for block in blocks(page)} <= LANGUAGES


@every_page
def test_every_bellwire_command_parses(page: Path) -> None:
    known = parser()
    for line in commands(page, "bellwire"):
        known.parse_args(shlex.split(line, comments=True)[1:])


@every_page
def test_every_link_leads_to_something(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@every_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    for path in re.findall(r"`((?:protocol|kvm|devices|daemon|tests|docs)/[\w./-]*)`", prose(page)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES[:1] + PAGES[2:], ids=IDS[:1] + IDS[2:])  # all but CHANGELOG.md
def test_no_line_of_a_page_is_too_wide(page: Path) -> None:
    wide = [line for line in written_by_hand(page) if len(line) > WIDEST]
    assert not wide, f"{page.name}: more than {WIDEST} characters"


def test_the_readme_fits_a_screen_and_a_half() -> None:
    assert len(README.read_text().splitlines()) <= 130


def test_the_readme_shows_a_whole_device_in_25_lines(tmp_path: Path) -> None:
    code, *_ = blocks(README, "python")
    assert len(code.text.splitlines()) <= 25
    file = tmp_path / "copier.py"
    file.write_text(code.text)
    assert describe(find_device(str(file)))["name"] == "copier"


def test_the_readme_attaches_qemu_as_bellwire_run_says() -> None:
    (line,) = commands(README, "qemu-system-x86_64")
    words = shlex.split(line)
    (path,) = re.findall(r'"path":"([^"]+)"', line)
    assert words == shlex.split(qemu_command(Path(path), ["kvm", "tcg"]))


def test_the_architecture_opens_with_four_sentences() -> None:
    opening = (DOCS / "architecture.md").read_text().split("\n\n")[1]
    assert len(re.findall(r"\.(?:\s|$)", opening)) == 4


@every_page
def test_configuration_that_is_shown_is_right(page: Path) -> None:
    for block in blocks(page, "toml"):
        if "[[fault]]" in block.text:  # a scenario: tests/docs/test_faults_page.py
            continue
        assert decode(tomllib.loads(block.text), Device, page.name).device
