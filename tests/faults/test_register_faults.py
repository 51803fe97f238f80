"""Faults of registers, and of rings."""

from __future__ import annotations

import pytest

from bellwire import OptionError
from bellwire.faults.registers import AllOnes, DoubleWrite, LateRing, LateWrite, LostRing, LostWrite, Slow, Stuck
from faults.part import Part, State, guest


def test_a_read_gives_all_ones() -> None:
    with guest(AllOnes(at=2)) as it:
        assert [it.read(Part.count) for _ in range(3)] == [8, 0xFFFF_FFFF, 8]


def test_only_the_register_that_is_named_gives_all_ones() -> None:
    with guest(AllOnes(register="status")) as it:
        assert (it.read(Part.status), it.read(Part.count)) == (0xFFFF_FFFF, 8)


def test_a_narrow_read_gives_as_many_ones() -> None:
    with guest(AllOnes()) as it:
        assert it.read(Part.source, size=2) == 0xFFFF


def test_a_register_is_stuck_at_a_value() -> None:
    with guest(Stuck(register="mmio.count", value=5)) as it:
        it.write(Part.count, 7)
        assert it.read(Part.count) == 5
        assert it.device.count == 7


@pytest.mark.parametrize("bits", ["DONE", "0x1"])
def test_a_bit_is_stuck_by_its_name_or_its_number(bits: str) -> None:
    with guest(Stuck(register="status", bits=bits, value=1)) as it:
        assert it.read(Part.status) == State.DONE
        it.device.status = State.FAILED
        assert it.read(Part.status) == State.DONE | State.FAILED


def test_a_part_of_a_stuck_register_is_stuck_too() -> None:
    with guest(Stuck(register="source", value=0x1122_3344_5566_7788)) as it:
        assert it.read(Part.source, offset=4, size=4) == 0x1122_3344


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "filter stuck: register= is missing: which register is stuck?"),
        ({"register": "stat"}, "filter stuck: register=stat: there is no register stat: did you mean mmio.status?"),
        ({"register": "status", "bits": "BUSY"}, "filter stuck: bits=BUSY: status has no BUSY: it has DONE, FAILED"),
        ({"register": "status", "bits": "0xZ"}, "filter stuck: bits=0xZ: expected a number or a name"),
        ({"register": "count", "bits": "0x100000000"}, "filter stuck: bits=0x100000000: count has 0x1 to 0xffffffff"),
        ({"register": "count", "value": "0x100000000"}, "filter stuck: value=4294967296: count has 0 to 0xffffffff"),
    ],
)
def test_an_error_names_the_register(arguments: dict[str, str], message: str) -> None:
    with guest() as it, pytest.raises(OptionError) as caught:
        it.filters.add(Stuck(**arguments))
    assert str(caught.value).startswith(message)


def test_a_write_is_lost() -> None:
    with guest(LostWrite(every=2)) as it:
        for value in (1, 2, 3, 4):
            it.write(Part.written, value)
        assert (it.device.writes, it.device.last) == (2, 3)


def test_a_write_arrives_late() -> None:
    with guest(LateWrite(by="10ms")) as it:
        it.write(Part.written, 1)
        assert it.device.writes == 0
        it.advance(0.01)
        assert it.device.writes == 1


def test_what_comes_behind_a_late_write_stays_behind_it() -> None:
    with guest(LateWrite(by="10ms", at=1)) as it:
        it.write(Part.count, 5)
        it.write(Part.count, 6)
        it.advance(0.01)
        assert it.device.count == 6


def test_a_write_arrives_twice() -> None:
    with guest(DoubleWrite(register="written", at=1)) as it:
        it.write(Part.written, 1)
        it.write(Part.written, 1)
        assert it.device.writes == 3


def test_a_ring_is_lost() -> None:
    with guest(LostRing(at=1)) as it:
        it.ring(Part.copy)
        it.ring(Part.value, 3)
        assert (it.device.rings, it.device.last) == (1, 3)


def test_a_ring_arrives_late() -> None:
    with guest(LateRing(by="10ms")) as it:
        it.ring(Part.value, 3)
        assert it.device.rings == 0
        it.advance(0.01)
        assert it.device.last == 3


def test_each_access_is_slow() -> None:
    with guest(Slow(by="2ms")) as it:
        it.read(Part.count)
        assert it.now == pytest.approx(0.002)
        it.write(Part.written, 1)
        assert it.device.writes == 0
        it.advance(0.002)
        assert it.device.writes == 1


def test_a_fault_counts_what_it_strikes() -> None:
    fault = AllOnes(every=2)
    with guest(fault) as it:
        for _ in range(5):
            it.read(Part.count)
    assert fault.report() == {"struck": 2, "seen": 5}


def test_a_fault_tells_what_it_strikes(caplog: pytest.LogCaptureFixture) -> None:
    with guest(AllOnes()) as it:
        for _ in range(20):
            it.read(Part.count)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["fault all-ones: the read of count gives all ones"] * 5  # at a limited rate


def test_a_fault_that_is_taken_out_strikes_nothing_any_more() -> None:
    fault = AllOnes()
    with guest(fault) as it:
        it.filters.remove(fault)
        assert it.read(Part.count) == 8
