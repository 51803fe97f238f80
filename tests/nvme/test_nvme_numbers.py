"""The numbers of NVMe 1.4 that hosts know: opcodes, statuses, and the identifiers of logs, features and events."""

from __future__ import annotations

from enum import IntEnum

import pytest

from bellwire.bundled.nvme.command import AdminOpcode, Byte, IoOpcode
from bellwire.bundled.nvme.events import Event
from bellwire.bundled.nvme.features import FeatureId, Select
from bellwire.bundled.nvme.history import Action, Happening
from bellwire.bundled.nvme.logs import LogPage
from bellwire.bundled.nvme.sanitize import Action as SanitizeAction
from bellwire.bundled.nvme.sanitize import State
from bellwire.bundled.nvme.self_test import Kind, Result
from bellwire.bundled.nvme.status import DO_NOT_RETRY, Status

NUMBERS: dict[type[IntEnum], str] = {
    AdminOpcode: "00 01 02 04 05 06 08 09 0A 0C 0D 14 15 7C 80 84",
    IoOpcode: "00 01 02 04 05 08 09 0C 19",
    Byte: "00 01 04 18 20 28 2C 30 34 38",
    LogPage: "01 02 03 04 05 06 07 08 0D 81",
    FeatureId: "01 02 04 05 06 07 08 09 0A 0B 0E",
    Select: "0 1 2 3",
    Action: "0 1 2",
    Happening: "01 03 04 05 06 07 08 09 0A",
    SanitizeAction: "1 2",
    State: "0 1 2 3",
    Kind: "0 1 2 F",
    Result: "0 1 2 3 4 7 9",
    Event: "010000 010100 020001 020101 020201 040002 080202 810106",
    Status: "000 001 002 004 006 007 008 00B 00C 013 01C 01D 020 021 080 081 082 084 "
    "100 101 102 103 105 108 109 10A 10C 10D 10E 10F 115 116 118 11A 11B 11C 11D 183 280 281 282 285 286",
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_hosts_know_a_thing_by_its_number(kind: type[IntEnum]) -> None:
    assert [int(member) for member in kind] == [int(number, 16) for number in NUMBERS[kind].split()]


def test_only_what_may_go_well_the_next_time_may_be_tried_again() -> None:
    again = {status for status in Status if status.field == status}
    assert again == {Status(code) for code in (0x000, 0x006, 0x007, 0x008, 0x021, 0x081, 0x082, 0x01D, 0x084, 0x11D)}
    assert {status.field - status for status in set(Status) - again} == {DO_NOT_RETRY} == {1 << 14}
