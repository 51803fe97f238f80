"""docs/devices.md has every register of the bundled devices, where it is, and no other."""

from __future__ import annotations

import itertools
from enum import IntEnum
from typing import Any

import pytest

import option_tables as tables
from bellwire import Doorbell, IoRegion, MsiX, PciDevice
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.features import FeatureId
from bellwire.bundled.nvme.logs import LogPage
from bellwire.declare.layout import BarLayout
from bellwired.find import bundled
from docs.documents import DOCS, rows, section

PAGE = DOCS / "devices.md"
DEVICES = bundled()
BARS = [
    pytest.param(device, plan, id=f"{device.name}-{plan.bar.name}")
    for device in DEVICES.values()
    for plan in device.layout.bars.values()
    if not all(isinstance(item, MsiX) for item in plan.placed)
]


SHARED = {"Transport": "virtio BAR0: mmio"}
"""What several devices have in common is described once: the class that declares it, and where."""


def declared(plan: BarLayout, owner: str | None = None) -> list[tuple[int, int, str, str]]:
    return [
        (item.offset, item.size, item.name, access(item))
        for item in plan.placed
        if (item.owner == owner if owner else item.owner not in SHARED)
    ]


def described(title: str) -> list[tuple[int, int, str, str]]:
    _, *table = [row for row in rows(section(PAGE, title)) if len(row) == 5]
    return [(int(offset, 16), int(size), name, word) for offset, size, name, word, _ in table]


def access(item: Any) -> str:
    match item:
        case Doorbell():
            return "doorbell"
        case IoRegion():
            return "ioregion"
        case _:
            return str(item.access_word)


@pytest.mark.parametrize(("device", "plan"), BARS)
def test_the_table_of_a_bar_is_the_class(device: type[PciDevice], plan: BarLayout) -> None:
    own = declared(plan)
    assert not own or described(f"{device.name} BAR{plan.bar.index}: {plan.bar.name}") == own


@pytest.mark.parametrize(("owner", "title"), SHARED.items(), ids=SHARED)
def test_what_devices_share_is_described_once(owner: str, title: str) -> None:
    shared = next(found for device in DEVICES.values() if (found := declared(device.layout.bars[0], owner)))
    assert described(title) == shared


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_the_identity_is_the_class(device: type[PciDevice]) -> None:
    identity = device.identity
    assert identity is not None
    facts = {row[0]: row[1] for row in rows(section(PAGE, device.name)) if len(row) == 2}
    assert facts["vendor, device"].startswith(f"0x{identity.vendor:04X}, 0x{identity.device:04X}")
    assert int(facts["class"], 16) == identity.class_code


@pytest.mark.parametrize(
    "device", [device for device in DEVICES.values() if device.layout.options], ids=lambda it: it.name
)
def test_every_option_is_listed_as_it_is_declared(device: type[PciDevice]) -> None:
    assert tables.table(device) in section(PAGE, device.name), "run make tables"


def test_the_tables_of_options_are_current() -> None:
    assert tables.written(PAGE.read_text()) == PAGE.read_text(), "run make tables"


def test_bell_matches_the_value_that_the_page_says() -> None:
    match = DEVICES["bell"].layout.bars[1].doorbells[1].match
    assert f"write of {match:#x}" in section(PAGE, "bell BAR1: bells")


def test_bell_keeps_its_msix_table_where_the_page_says() -> None:
    assert f"table in BAR{DEVICES['bell'].layout.msix_bar}" in section(PAGE, "bell")


@pytest.mark.parametrize(
    ("heading", "numbers"),
    [("admin command", AdminOpcode), ("I/O command", IoOpcode), ("log page", LogPage), ("feature", FeatureId)],
)
def test_the_tables_of_nvme_are_what_it_takes(heading: str, numbers: type[IntEnum]) -> None:
    table = [row for row in rows(section(PAGE, "nvme commands")) if len(row) == 3]
    own = itertools.dropwhile(lambda row: row[0] != heading, table)
    next(own)
    listed = [(row[0], int(row[1], 16)) for row in itertools.takewhile(lambda row: row[1].startswith("0x"), own)]
    assert listed == [(name.replace("_", " ").title(), int(number)) for name, number in numbers.__members__.items()]
