"""Faults of the whole device."""

from __future__ import annotations

import pytest

from bellwire import GuestError
from bellwire.bundled.nvme import Nvme
from bellwire.faults import Fault
from bellwire.faults.presence import ConfigOnes, EndlessReset, Gone, Hung, LinkDown, SlowReset
from bellwire.testing import Guest
from faults.part import Part, guest

ONES = 0xFFFF_FFFF


def lasting(kind: type[Fault], **arguments: object) -> Fault:
    return kind(**{"for" if name == "lasts" else name: value for name, value in arguments.items()})


def test_config_space_gives_all_ones_and_takes_no_write() -> None:
    with guest(lasting(ConfigOnes, after="1s", lasts="1s")) as it:
        assert it.config_read(0, 4) == 0x5679_1234
        it.advance(1)
        assert it.config_read(0, 4) == ONES
        it.config_write(4, 0, 2)
        assert it.read(Part.count) == 8
        it.advance(1)
        assert it.config_read(0, 4) == 0x5679_1234
        assert it.config_read(4, 2) & 4


@pytest.mark.parametrize("kind", [Gone, LinkDown])
def test_a_device_that_is_away_answers_nothing(kind: type[Fault]) -> None:
    with guest(lasting(kind, after="1s")) as it:
        it.advance(1)
        assert (it.read(Part.count), it.config_read(0, 2)) == (ONES, 0xFFFF)
        it.write(Part.written, 1)
        it.ring(Part.copy)
        it.device.irq[0].trigger()
        with pytest.raises(GuestError, match=f"fault {kind.name}"):
            it.device.dma.read(0, 8)
        with pytest.raises(GuestError, match=f"fault {kind.name}"):
            it.device.dma.write(0, bytes(8))
        assert (it.device.writes, it.device.rings, it.interrupts.total()) == (0, 0, 0)


@pytest.mark.parametrize("kind", [Gone, LinkDown])
def test_a_device_that_is_back_has_been_reset(kind: type[Fault]) -> None:
    with guest(lasting(kind, after="1s", lasts="500ms")) as it:
        it.write(Part.count, 5)
        it.advance(1.4)
        assert it.read(Part.count) == ONES
        it.advance(0.1)
        assert it.read(Part.count) == 8
        assert it.config_read(4, 2) == 0


def test_taking_the_fault_out_brings_the_device_back() -> None:
    fault = Gone()
    with guest(fault) as it:
        assert it.read(Part.count) == ONES
        it.filters.remove(fault)
        assert it.read(Part.count) == 8


def test_a_lasting_fault_begins_at_an_event_and_ends_after_its_time() -> None:
    fault = lasting(Gone, at=3, lasts="1s")
    with guest(fault) as it:
        it.config_read(0, 2)
        it.write(Part.count, 5)
        seen = [it.read(Part.count)]
        it.advance(1)
        seen.append(it.read(Part.count))
        assert seen == [ONES, 8]
        assert fault.report()["struck"] == 1


def test_a_hung_device_shows_its_registers_and_does_nothing() -> None:
    with guest(lasting(Hung, after="1s", lasts="1s")) as it:
        it.write(Part.count, 5)
        it.advance(1)
        assert it.read(Part.count) == 5
        it.write(Part.written, 7)
        it.ring(Part.copy)
        it.ring(Part.value, 9)
        it.device.irq[2].trigger()
        assert (it.device.writes, it.device.rings, it.interrupts.total()) == (0, 0, 0)
        it.advance(1)
        assert (it.device.writes, it.device.rings, it.device.last) == (1, 2, 9)
        assert sorted(vector for _, vector in it.interrupts) == [1, 2]


def test_a_mistake_of_the_guest_that_was_held_back_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with guest(lasting(Hung, lasts="1s")) as it:
        it.write(Part.count, 5000)
        it.ring(Part.copy)
        it.ring(Part.value, 9)
        it.advance(1)
        assert "a count of 5000, at most 4096 expected" in [record.getMessage() for record in caplog.records]
        assert it.device.last == 9
        assert len(it.filters) == 1


def test_a_row_of_doorbells_is_rung_again_with_and_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    with Guest(Nvme, filters=[lasting(Hung, lasts="1s")], doorbells="shadow", queues=1) as it:
        rung: list[tuple[str, int, object]] = []
        for name in ("ring_tail", "ring_head"):
            monkeypatch.setattr(
                it.device.controller.engine, name, lambda qid, value, name=name: rung.append((name, qid, value))
            )
        it.ring(Nvme.admin_bells, 3, index=0)
        it.ring(Nvme.io_bells, index=1)
        assert rung == []
        it.advance(1)
        assert rung == [("ring_tail", 0, 3), ("ring_head", 1, None)]


def test_a_hung_device_is_released_when_the_fault_is_taken_out() -> None:
    fault = Hung()
    with guest(fault) as it:
        it.write(Part.written, 7)
        assert it.device.writes == 0
        it.filters.remove(fault)
        assert it.device.last == 7


def test_a_reset_ends_a_hang_and_drops_what_was_held_back() -> None:
    with guest(Hung()) as it:
        it.write(Part.written, 7)
        it.reset()
        assert it.device.writes == 0
        it.write(Part.written, 8)
        assert it.device.last == 8


def test_a_reset_takes_long() -> None:
    with guest(SlowReset(by="1s")) as it:
        it.reset()
        assert (it.config_read(0, 4), it.read(Part.count)) == (ONES, ONES)
        it.write(Part.written, 1)
        it.ring(Part.copy)
        it.advance(1)
        assert it.config_read(0, 4) == 0x5679_1234
        assert (it.device.writes, it.device.rings) == (0, 0)


def test_a_reset_never_ends() -> None:
    fault = EndlessReset()
    with guest(fault) as it:
        it.reset()
        it.advance(80000)
        assert it.read(Part.count) == ONES
        it.filters.remove(fault)
        assert it.read(Part.count) == 8
