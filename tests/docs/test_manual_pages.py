"""Each command has a manual page, with every option of its parser and no other."""

from __future__ import annotations

import argparse
import re

import pytest

from bellwire_vmm import guests
from bellwired.cli import parser
from docs.documents import DOCS

MAN = DOCS / "man"


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each page's command."""
    top = parser()
    found = {"bellwire": top}
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {f"bellwire-{name}": command for name, command in action.choices.items()}
    return found


PARSERS = parsers()
each_command = pytest.mark.parametrize("name", PARSERS)


def part(name: str, title: str) -> str:
    """A section of a page, with hyphens as they are typed."""
    text = (MAN / f"{name}.1").read_text()
    found = re.search(rf"^\.SH {title}\n(.*?)(?=^\.SH|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{name}.1 has no section {title}"
    return found[1].replace(r"\-", "-")


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))


def test_there_is_a_page_for_each_command_and_no_other() -> None:
    assert {page.stem for page in MAN.glob("*.1")} == set(PARSERS)


@each_command
def test_the_options_of_a_page_are_the_parsers(name: str) -> None:
    heads = "\n".join(re.findall(r"^\.TP\n(.*)$", part(name, "OPTIONS"), re.MULTILINE))
    assert options(heads) == set(PARSERS[name]._option_string_actions)


@each_command
def test_the_synopsis_names_each_option_once(name: str) -> None:
    synopsis = options(part(name, "SYNOPSIS"))
    for action in PARSERS[name]._actions:
        if action.option_strings:
            assert len(synopsis & set(action.option_strings)) == 1, action.option_strings
    assert synopsis <= set(PARSERS[name]._option_string_actions)


@each_command
def test_a_page_begins_with_what_the_command_does(name: str) -> None:
    assert (MAN / f"{name}.1").read_text().startswith(f".TH {name.upper()} 1 ")
    assert part(name, "NAME").startswith(f"{name} - ")


def test_the_commands_are_listed() -> None:
    listed = re.findall(r"^\.BR (bellwire-\w+) \(1\)$", part("bellwire", "COMMANDS"), re.MULTILINE)
    assert [*listed] == [name for name in PARSERS if name != "bellwire"]


def test_the_guests_are_listed() -> None:
    assert re.findall(r"^\.TP\n\.B (\w+)$", part("bellwire-vmm", "GUESTS"), re.MULTILINE) == sorted(guests.names())
