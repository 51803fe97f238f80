"""docs/register-maps.md: its commands are run, and its tables have everything that there is."""

from __future__ import annotations

import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest

from bellwired.commands.cli import main
from bellwired.commands.export import FORMATS
from bellwired.maps import register_map as maps
from docs.documents import DOCS, blocks, commands, rows, section

PAGE = DOCS / "register-maps.md"
OBJECTS = {
    "the device": maps.Map,
    "msix": maps.Vectors,
    "a BAR": maps.BarMap,
    "a register": maps.Register,
    "a doorbell": maps.Doorbell,
    "a range (ioregion)": maps.Range,
    "an area": maps.Area,
    "a block": maps.Block,
    "a field": maps.Field,
    "a value or mask": maps.Value,
}
OF_ITEMS = {"name", "offset", "description"}


def test_the_commands_of_the_page_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lamp.py").write_text(blocks(PAGE, "python")[0].text)
    header, _, bank = (block.text for block in blocks(PAGE, "text"))
    (tmp_path / "lamp_bank.rdl").write_text(bank)
    printed = []
    for line in commands(PAGE, "bellwire"):
        assert main(shlex.split(line)[1:]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0].endswith(header)
    for name in re.findall(r"--output (\S+)", "\n".join(commands(PAGE, "bellwire"))):
        assert (tmp_path / name).stat().st_size > 200


def test_the_page_has_every_format() -> None:
    assert [cells[0] for cells in rows(section(PAGE, "Export"))][1 : len(FORMATS) + 1] == list(FORMATS)


def test_the_page_has_every_property() -> None:
    cells = [cells[0] for cells in rows(section(PAGE, "Properties"))][1:]
    named = {f"bellwire{word.removeprefix('bellwire')}" for cell in cells for word in cell.split(", ")}
    text = files("bellwired.maps").joinpath("bellwire.rdl").read_text()
    assert named == set(re.findall(r"^property (\w+)", text, re.MULTILINE))


def test_the_page_has_every_key_of_the_json() -> None:
    told: dict[str, set[str]] = {}
    for name, words in rows(section(PAGE, "JSON")):
        told.setdefault(name.partition(":")[0], set()).update(words.partition(";")[0].split())
    for name, kind in OBJECTS.items():
        keys = set(kind.__struct_fields__)
        assert told[name] == (keys - OF_ITEMS if kind in get_args(maps.Item) else keys), name
