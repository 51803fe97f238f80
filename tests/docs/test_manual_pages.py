"""The manual pages are written from the parsers and the settings: nothing may be missing, and troff must like them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bellwired.commands import cli
from bellwired.find import bundled
from bellwired.install import manual_pages
from bellwired.settings import Daemon, Device

PAGES = manual_pages.pages()


COMMANDS = manual_pages.commands(cli.parser())
DEVICES = bundled()


def typed(page: str) -> str:
    """A page with hyphens as they are typed."""
    return PAGES[page].replace(r"\-", "-")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_in_the_page_and_in_one_of_its_own(name: str) -> None:
    assert f"COMMAND \\fI\\,'bellwire {name}'" in typed("bellwire.1")
    for page in (typed("bellwire.1"), typed(f"bellwire-{name}.1")):
        for action in COMMANDS[name]._actions:
            assert all(option in page for option in action.option_strings if option != "--help")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_page_says_what_each_exit_status_means(name: str) -> None:
    page = typed(f"bellwire-{name}.1")
    statuses = dict(re.findall(r"^\.B (\d+)\n(.+)$", page, re.MULTILINE))
    assert {"0", "1", "2"} <= set(statuses)
    assert ("3" in statuses) == (name in ("status", "vmm"))
    assert all(about.endswith(".") for about in statuses.values())


def test_no_status_is_of_a_command_that_there_is_not() -> None:
    assert set(manual_pages.OWN_STATUSES) <= set(COMMANDS)


@pytest.mark.parametrize("name", DEVICES)
def test_a_devices_page_has_every_option_with_its_type_default_and_what_it_is_for(name: str) -> None:
    page, kind = typed(f"bellwire-{name}.7"), DEVICES[name]
    for key, option in kind.layout.options.items():
        found = re.search(rf'^\.BR {key} " = " {option.type_name}\n(.+)$', page, re.MULTILINE)
        assert found
        assert option.help[1:] in found[1]
        assert option.text(option.default) in found[1]
        assert option.allowed in found[1]
        assert ("May be changed while the guest runs" in found[1]) == (("set", option) in kind.layout.hooks)


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
