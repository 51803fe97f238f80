"""Conditions on registers."""

from __future__ import annotations

from enum import IntFlag

import pytest

from bellwire import Bar, Block, OptionError, PciDevice, reg
from bellwire.faults.condition import Condition
from bellwire.testing import Guest


class State(IntFlag):
    DONE = 1
    FAILED = 2
    BOTH = 3


class Queue(Block):
    base = reg(0, size=8)


class Part(PciDevice, vendor=0x1234, device=0x5678, class_code=0xFF0000):
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x00, State)
    count = mmio.reg(0x04)
    queues = mmio.block(0x100, Queue, count=4, stride=0x10)
    other = Bar(2, size=4096)


@pytest.mark.parametrize(
    ("text", "true", "false"),
    [
        ("mmio.status", 2, 0),
        ("status.DONE", 1, 2),
        ("mmio.status.BOTH", 3, 1),
        ("!mmio.status.DONE", 2, 3),
        ("status==2", 2, 3),
        ("status!=2", 3, 2),
        ("status<0x2", 1, 2),
        ("status<=2", 2, 3),
        ("status>2", 3, 2),
        ("status>=2", 2, 1),
        ("status&2", 3, 1),
        ("status.FAILED==2", 3, 1),
    ],
)
def test_a_condition_looks_at_what_is_stored(text: str, true: int, false: int) -> None:
    with Guest(Part) as guest:
        holds = Condition(text).bind(guest.device)
        guest.device.status = State(true)
        assert holds() is True
        guest.device.status = State(false)
        assert holds() is False


def test_a_row_of_a_block_has_a_name_too() -> None:
    with Guest(Part) as guest:
        holds = Condition("mmio.queues[3].base==4096").bind(guest.device)
        assert not holds()
        guest.device.queues[3].base = 4096
        assert holds()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mmio.stats", "there is no register mmio.stats: did you mean mmio.status?"),
        ("status.DOEN", "status has no DOEN: it has DONE, FAILED, BOTH"),
        ("count.DONE", "count has no DONE: it has no named bits"),
        ("count<0x100000000", "count can never have this value: its bits are 0xffffffff"),
        ("status.FAILED==1", "status.FAILED can never have this value: its bits are 0x2"),
    ],
)
def test_an_error_names_what_there_is(text: str, message: str) -> None:
    with Guest(Part) as guest, pytest.raises(OptionError) as caught:
        Condition(text).bind(guest.device)
    assert str(caught.value) == f"when={text}: {message}"
