"""The manual pages are written from the parsers and the settings: nothing may be missing, and troff must like them."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest

from bellwired.commands import cli
from bellwired.install import manual_pages
from bellwired.settings import Daemon, Device

PAGES = manual_pages.pages()


def commands() -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in cli.parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
    return found


def typed(page: str) -> str:
    """A page with hyphens as they are typed."""
    return PAGES[page].replace(r"\-", "-")


@pytest.mark.parametrize("name", commands())
def test_every_command_and_option_is_in_the_page(name: str) -> None:
    page = typed("bellwire.1")
    assert f"COMMAND \\fI\\,'bellwire {name}'" in page
    for action in commands()[name]._actions:
        assert all(option in page for option in action.option_strings if option != "--help")


@pytest.mark.parametrize("table", [Device, Daemon])
def test_every_key_has_words_of_its_own(table: type[Device | Daemon]) -> None:
    for key, kind, _, about in manual_pages.keys(table):
        assert about.endswith("."), key
        assert f'.BR {key} " = " {kind}' in typed("bellwire-device.toml.5")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_it_is_about_in_a_line(page: str) -> None:
    lines = PAGES[page].splitlines()
    assert r" \- " in lines[lines.index(".SH NAME") + 1]


@pytest.mark.parametrize("page", PAGES)
def test_troff_has_nothing_to_say(page: str) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("groff is not installed: apt install groff-base")
    done = subprocess.run(
        [groff, "-man", "-Tutf8", "-ww", "-z"], input=PAGES[page].encode(), capture_output=True, check=True
    )
    assert done.stderr == b""


def test_the_command_writes_every_page(tmp_path: Path) -> None:
    assert manual_pages.main([str(tmp_path / "man")]) == 0
    assert {path.name for path in (tmp_path / "man").iterdir()} == set(PAGES)
