"""docs/protocol.md has the numbers that the code has."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import pytest

from docs.documents import DOCS, blocks, rows, section
from vfio_user import IoCommand, IoEventFd, IoRegionFd
from vfio_user.channel import HEADER
from vfio_user.io_fds import ENTRY, ENTRY_48, pack_sub_regions
from vfio_user.ioregionfd import COMMAND, RESPONSE, encode_command

PAGE = DOCS / "protocol.md"


def layouts(title: str) -> list[list[tuple[int, int]]]:
    """(offset, size) of the fields of each byte layout under a heading."""
    tables: list[list[tuple[int, int]]] = []
    for row in rows(section(PAGE, title)):
        if row[0] == "offset":
            tables.append([])
        elif row[0].isdigit() and tables:
            tables[-1].append((int(row[0]), int(row[1])))
    return tables


def test_every_limit_is_the_codes() -> None:
    limits = [row for row in rows(section(PAGE, "Limits")) if row[1].isdigit()]
    assert limits
    for _, value, where in limits:
        package, module, *path = where.split(".")
        found: Any = importlib.import_module(f"{package}.{module}")
        for name in path:
            found = getattr(found, name)
        assert found == int(value), where


@pytest.mark.parametrize(
    ("title", "sizes"),
    [
        ("Messages", [HEADER.size]),
        ("Entry of 40 bytes", [ENTRY]),
        ("Entry of 48 bytes", [ENTRY_48]),
        ("The ioregionfd wire", [COMMAND.size, RESPONSE.size]),
    ],
)
def test_a_layout_has_no_gaps_and_the_size_of_the_codes(title: str, sizes: list[int]) -> None:
    found = layouts(title)
    for fields in found:
        assert fields[0][0] == 0
        assert all(offset + size == following for (offset, size), (following, _) in itertools.pairwise(fields))
    assert [sum(fields[-1]) for fields in found] == sizes


@pytest.mark.parametrize(("title", "size"), [("Entry of 40 bytes", ENTRY), ("Entry of 48 bytes", ENTRY_48)])
def test_the_fields_of_an_entry_lie_where_the_table_says(title: str, size: int) -> None:
    entry, _ = pack_sub_regions([IoEventFd(offset=0x10, size=4, fd=9, datamatch=0x42)], size)
    table = {row[2]: (int(row[0]), int(row[1])) for row in rows(section(PAGE, title)) if row[0].isdigit()}
    match = next(place for name, place in table.items() if name.startswith("datamatch"))
    for (at, width), value in {table["offset"]: 0x10, table["size"]: 4, table["flags"]: 1, match: 0x42}.items():
        assert int.from_bytes(entry[at : at + width], "little") == value


def test_user_data_lies_at_32_in_both_entries() -> None:
    for size in (ENTRY, ENTRY_48):
        entry, _ = pack_sub_regions([IoRegionFd(offset=0, size=4, fd=9, user_data=7)], size)
        assert entry[32:40] == (7).to_bytes(8, "little")


def test_the_example_commands_are_those_bytes() -> None:
    (example,) = blocks(PAGE, "text")
    written = [bytes.fromhex(line) for line in example.text.splitlines()]
    commands = [IoCommand(True, 4, False, 3, 0, 0x2A), IoCommand(False, 4, True, 3, 8)]
    assert written == [encode_command(command) for command in commands]
