"""Blocks: the same registers and doorbells for each of many queues."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntFlag
from typing import Any

import pytest

from bellwire import Bar, Block, DeclarationError, PciDevice, Saved, doorbell, reg
from bellwire.testing import Guest, conformance
from bellwired.workers.registers import registers
from devices.serving import read, served, sub_regions, wait_until, write

IDS: dict[str, Any] = {"vendor": 0x1234, "device": 0xB10C, "class_code": 0x088000}


class State(IntFlag):
    ON = 1


class Channel(Block):
    base = reg(0x00, 8)
    state = reg(0x08, kind=State)
    tail = doorbell(0x10)
    value = doorbell(0x14, value=True)

    @property
    def on(self) -> bool:
        return State.ON in self.state


class Queued(PciDevice, **IDS):
    mmio = Bar(0, size=4096)
    queues = mmio.block(0x100, count=16, stride=0x40, base=reg(0x00, 8), size=reg(0x08, reset=7), tail=doorbell(0x10))
    channels = mmio.block(0x800, Channel, count=4, stride=0x20)
    other = mmio.reg(0x20)
    last = Saved(0)

    @queues.tail.ring
    def queue_rung(self, index: int) -> None:
        self.last = index

    @queues.size.write
    def resized(self, index: int, size: int) -> None:
        self.last = index << 8 | size

    @queues.base.read
    def read_base(self, index: int) -> int:
        return int(self.queues[index].base) + index

    @channels.tail.ring
    def channel_rung(self, index: int) -> None:
        self.channels[index].state |= State.ON

    @channels.value.ring
    def channel_told(self, index: int, value: int) -> None:
        if value == 99:
            raise ValueError(value)
        self.last = index << 16 | value


TestQueued = conformance(Queued)


@pytest.fixture
def guest() -> Iterator[Guest[Queued]]:
    with Guest(Queued) as guest:
        yield guest


def test_each_row_has_registers_of_its_own(guest: Guest[Queued]) -> None:
    guest.write(0, 0x1234, offset=0x100 + 3 * 0x40, size=8)
    device = guest.device
    assert [row.base for row in device.queues] == [0x1234 if index == 3 else 0 for index in range(16)]
    device.queues[5].size = 0x1_0000_0009
    assert guest.read(0, 0x100 + 5 * 0x40 + 8, 4) == 9
    assert guest.read(Queued.queues[15].size) == 7


def test_hooks_are_told_the_row(guest: Guest[Queued]) -> None:
    guest.write(Queued.queues[2].size, 5)
    assert guest.device.last == 0x205
    guest.ring(Queued.queues[9].tail)
    assert guest.device.last == 9
    assert guest.read(Queued.queues[4].base) == 4
    guest.ring(Queued.channels[3].value, 0x77)
    assert guest.device.last == 0x3_0077


def test_each_row_counts_its_own_rings(guest: Guest[Queued]) -> None:
    for index in (1, 1, 2):
        guest.ring(Queued.queues[index].tail)
    assert [guest.device.queues[index].tail.rung for index in range(3)] == [0, 2, 1]


def test_a_row_that_was_declared_as_a_class_is_one(guest: Guest[Queued]) -> None:
    channel = guest.device.channels[1]
    assert not channel.on
    guest.ring(Queued.channels[1].tail)
    assert channel.on
    assert channel.state is State.ON
    assert (channel.index, channel.device) == (1, guest.device)


def test_names_are_those_of_the_rows() -> None:
    found = {entry["name"]: entry for entry in registers(Queued())}
    assert found["queues[3].base"]["offset"] == 0x100 + 3 * 0x40
    assert found["channels[2].state"]["meaning"] == "0"
    assert str(Queued.queues[3].base) == "Queued.queues[3].base"
    assert [bell.name for bell in Queued.layout.doorbells][:2] == ["queues[0].tail", "queues[1].tail"]


def test_rows_ring_by_fds_like_any_doorbell(caplog: pytest.LogCaptureFixture) -> None:
    device = Queued()
    with served(device) as client, sub_regions(client) as subs:
        assert 0x100 + 7 * 0x40 + 0x10 in subs
        write(client, 0x814, 99, posted=True)
        wait_until(lambda: "in ring of Queued.channels[0].value with 0x63" in caplog.text)
        assert read(client, Queued.other.offset) == 0
    assert "Queued.channel_told failed at" in caplog.text


def test_a_block_can_be_kept_in_a_soft_reset(guest: Guest[Queued]) -> None:
    device = guest.device
    device.queues[0].base = device.channels[0].base = 5
    device.reset_registers(keep=[Queued.queues])
    assert (device.queues[0].base, device.channels[0].base) == (5, 0)


def test_a_misspelt_member_is_an_error(guest: Guest[Queued]) -> None:
    with pytest.raises(AttributeError, match="bsae"):
        guest.device.queues[0].bsae = 5
    with pytest.raises(AttributeError, match="chanel"):
        guest.device.channels[0].chanel = 5  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="a row of the block has no bsae: it has base, size, tail"):
        _ = Queued.queues[0].bsae
    with pytest.raises(AttributeError, match="is a doorbell"):
        guest.device.queues[0].tail = 1


def test_a_row_beyond_the_last_is_an_error(guest: Guest[Queued]) -> None:
    with pytest.raises(IndexError):
        _ = guest.device.queues[16]
    with pytest.raises(IndexError):
        _ = Queued.queues[16]


def test_the_block_itself_cannot_be_assigned(guest: Guest[Queued]) -> None:
    with pytest.raises(AttributeError, match=r"Queued\.queues is a BlockArray"):
        guest.device.queues = ()  # type: ignore[assignment]


def test_a_subclass_may_tie_another_method() -> None:
    class Other(Queued, device=0xB10D):
        @Queued.queues.tail.ring
        def queue_rung(self, index: int) -> None:
            self.last = 1000 + index

    with Guest(Other) as guest:
        guest.ring(Other.queues[4].tail)
        assert guest.device.last == 1004


mmio = Bar(0, size=4096)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: mmio.block(0x100, count=0, stride=8, a=reg(0)), "queues: a block has 1 to 4096 rows, not 0"),
        (lambda: mmio.block(0x100, count=2, stride=4, a=reg(0, 8)), "stride 0x4 is less than a row's 0x8 bytes"),
        (lambda: mmio.block(0x100, count=2, stride=6, a=reg(0)), r"queues\[1\].a: offset 0x106 is misaligned"),
        (lambda: mmio.block(0xF00, count=9, stride=32, a=reg(0)), r"queues\[8\].a: 0x1000 to 0x1003 lies outside mmio"),
        (lambda: mmio.block(0, count=2, stride=32, a=reg(0)), r"0x20 to 0x23 overlaps"),
        (
            lambda: mmio.block(0x100, count=2, stride=8, a=reg(0), b=reg(2, 2)),
            r"queues\[0\].b: .* overlaps queues\[0\].a",
        ),
        (lambda: mmio.block(0x100, count=2, stride=8, a=doorbell(0)), "no method is tied to it: write @queues.a.ring"),
        (lambda: mmio.block(0x100, count=2, stride=8, index=reg(0)), "index for its own use"),
        (lambda: mmio.block(0x100, count=2, stride=8, rows=reg(0)), "rows for its own use"),
        (lambda: mmio.block(0x100, count=2, stride=8), "at least one register or doorbell"),
    ],
)
def test_a_block_that_cannot_be_is_refused_at_import(make: Any, words: str) -> None:
    body = {"mmio": mmio, "queues": make(), "other": mmio.reg(0x20)}
    with pytest.raises(DeclarationError, match=words):
        type("Bad", (PciDevice,), body, **IDS)


@pytest.mark.parametrize("kind", [int, 5, "Channel"])
def test_rows_that_no_block_describes_are_refused(kind: Any) -> None:
    with pytest.raises(DeclarationError, match="described by a subclass of Block, not by"):
        mmio.block(0, kind, count=1, stride=8)


def test_what_is_no_member_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"a of the block is neither reg\(...\) nor doorbell\(...\)"):
        mmio.block(0, count=1, stride=8, a=mmio.reg(0))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("event", "member", "words"),
    [
        ("write", "tail", "tail of the block has no .write: tie the method by .ring"),
        ("ring", "base", "base of the block has no .ring: tie the method by .read and .write"),
    ],
)
def test_a_hook_of_the_wrong_kind_is_refused(event: str, member: str, words: str) -> None:
    with pytest.raises(DeclarationError, match=words):
        getattr(getattr(Queued.queues, member), event)(lambda self, index: None)


def test_a_hook_must_take_the_row() -> None:
    with pytest.raises(DeclarationError, match=r"hook of queues.size: it is called as resized\(self, index, value\)"):

        class _Wrong(Queued, device=0xB10E):
            @Queued.queues.size.write
            def resized(self, size: int) -> None: ...  # type: ignore[override]
