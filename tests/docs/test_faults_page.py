"""docs/faults.md has every fault and every scenario, and what its code says of them."""

from __future__ import annotations

import faults_page
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.faults.scenario import parse_scenario
from docs.documents import DOCS, blocks

PAGE = DOCS / "faults.md"


def test_the_tables_are_what_the_faults_say() -> None:
    page = PAGE.read_text()
    assert page == faults_page.written(page), "run python tools/faults_page.py"


def test_the_page_has_all_tables() -> None:
    assert all(f"<!-- faults: {name} -->" in PAGE.read_text() for name in faults_page.parts())


def test_the_scenarios_of_the_page_are_such() -> None:
    found = [parse_scenario(block.text, "mine") for block in blocks(PAGE, "toml")]
    assert [len(each.fault) for each in found] == [2, 1]
    assert all(each.faults(VirtioNet) for each in found)
