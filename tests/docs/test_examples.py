"""The examples beside the pages: they are what the pages say. tests/guest/test_drivers.py runs them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bellwired.find import find_device
from bellwired.maps import from_device, to_c
from docs.documents import CI, DOCS, ROOT, blocks, ci_lines


def test_the_copier_is_the_readmes() -> None:
    names: dict[str, Any] = {"__name__": "readme"}
    exec(blocks(ROOT / "README.md", "python")[0].text, names)
    example = find_device(str(ROOT / "examples/copier/copier.py"))
    assert to_c.write(from_device.read(example)) == to_c.write(from_device.read(names["Copier"]))


def test_there_are_examples_for_two_ci_systems() -> None:
    assert [file.name for file in CI] == ["github.yml", "gitlab.yml"]


@pytest.mark.parametrize("file", CI, ids=lambda file: file.name)
def test_a_ci_example_installs_what_it_uses_and_runs_what_the_page_says(file: Path) -> None:
    install, tests = ci_lines(file)
    assert install == "pip install 'bellwire[pytest]' pytest-xdist"
    assert tests == "pytest -n 2 --bellwire-required --junitxml=report.xml"
    assert "report.xml" in file.read_text().partition(tests)[2]
    assert tests in (DOCS / "testing-drivers.md").read_text()


@pytest.mark.parametrize("file", CI, ids=lambda file: file.name)
def test_a_ci_example_runs_on_debian_whatever_its_runner_is(file: Path) -> None:
    assert re.search(r"^ +image: python:3\.\d+-trixie$", file.read_text(), re.MULTILINE)
