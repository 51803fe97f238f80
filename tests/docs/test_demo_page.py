"""docs/demo.md describes every row and every field of `bellwire demo`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bellwired.commands.cli import main
from bellwired.demo.ways import WAYS
from docs.documents import DOCS, rows, section

pytestmark = pytest.mark.slow

PAGE = DOCS / "demo.md"


def test_every_row_is_described_in_order() -> None:
    _, *table = rows(section(PAGE, "The rows"))
    assert [row[0] for row in table] == [way.name for way in WAYS]


def test_every_field_of_the_json_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    assert main(["demo", "--no-kvm", "--count", "10", "--json", str(file)]) == 0
    capsys.readouterr()
    report = json.loads(file.read_text())
    described = [row[0] for row in rows(section(PAGE, "The JSON")) if row[0] != "field"]
    assert described == [*report, *report["paths"][0]]
