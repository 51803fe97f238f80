"""Changes of single things that the device says, and `fuzz`, which makes them at random."""

from __future__ import annotations

import pytest

from bellwire.faults.changed import ChangedDma, ChangedRead, Fuzz
from bellwire.faults.scenario import Scenario
from bellwire.filters import Filter
from bellwire.testing import Guest
from faults.part import Part, guest

SOURCE, TARGET = 0x1000, 0x2000


def exercise(it: Guest[Part]) -> list[object]:
    """A driver at work: what it has seen."""
    seen: list[object] = []
    for number in range(60):
        it.memory[SOURCE : SOURCE + 8] = number.to_bytes(8, "little")
        it.ring(Part.copy)
        seen += [it.read(Part.status), it.read(Part.count), bytes(it.memory[TARGET : TARGET + 8])]
    it.advance(1)
    return [*seen, dict(it.interrupts)]


def under(*filters: Filter) -> list[object]:
    with Guest(Part, filters=filters) as it:
        return exercise(it)


def test_a_read_is_changed() -> None:
    with guest(ChangedRead(register="count", xor=0x10, at=2)) as it:
        assert [it.read(Part.count) for _ in range(3)] == [8, 0x18, 8]


def test_a_narrow_read_has_only_its_own_bits_changed() -> None:
    with guest(ChangedRead(register="count", xor=0xFFFF)) as it:
        assert it.read(Part.count, size=1) == 8 ^ 0xFF


@pytest.mark.parametrize(
    ("size", "offset", "expected"), [(0, 2, b"ABbDEFGH"), (8, 2, b"ABbDEFGH"), (16, 2, b"ABCDEFGH")]
)
def test_a_byte_of_a_dma_write_is_changed(size: int, offset: int, expected: bytes) -> None:
    with guest(ChangedDma(size=size, offset=offset, xor=ord("b") ^ ord("C"))) as it:
        it.memory[SOURCE : SOURCE + 8] = b"ABCDEFGH"
        it.ring(Part.copy)
        assert bytes(it.memory[TARGET : TARGET + 8]) == expected


def test_a_byte_that_a_write_lacks_is_not_changed() -> None:
    with guest(ChangedDma(offset=100)) as it:
        it.memory[SOURCE : SOURCE + 8] = b"ABCDEFGH"
        it.ring(Part.copy)
        assert bytes(it.memory[TARGET : TARGET + 8]) == b"ABCDEFGH"


def test_the_seed_decides_what_fuzz_changes() -> None:
    assert under(Fuzz(p=0.2, seed=1)) == under(Fuzz(p=0.2, seed=1))
    assert under(Fuzz(p=0.2, seed=1)) != under(Fuzz(p=0.2, seed=2)) != under()


def test_the_changes_of_fuzz_are_a_scenario_that_does_the_same() -> None:
    fuzz = Fuzz(p=0.1, seed=3)
    seen = under(fuzz)
    assert {change["fault"] for change in fuzz.changes} >= {"changed-read", "changed-dma", "lost-irq"}
    faults = [Scenario(about="a", driver="b", fault=(change,), name="x").faults(Part)[0] for change in fuzz.changes]
    with Guest(Part) as it:
        for fault in faults[:32]:
            it.filters.add(fault)
        assert len(faults) <= 32
        assert exercise(it) == seen


def test_reads_that_span_registers_count_for_each_of_them() -> None:
    def exercise(*faults: Filter) -> list[int]:
        with Guest(Part, filters=faults) as it:
            return [it.read(0, 0, size) for _ in range(20) for size in (4, 8)]

    fuzz = Fuzz(p=0.3, seed=1, times=16)
    seen = exercise(fuzz)
    scenario = Scenario(about="a", driver="b", fault=tuple(fuzz.changes), name="x")
    assert exercise(*scenario.faults(Part)) == seen


def test_fuzz_tells_where_it_has_changed_something() -> None:
    fuzz = Fuzz(p=0.1, seed=3)
    under(fuzz)
    report = fuzz.report()
    assert sum(report["changed"].values()) == report["struck"] == len(fuzz.changes)
    assert "changed-read count" in report["changed"]
    assert "changed-dma 8" in report["changed"]


@pytest.mark.parametrize(("only", "kinds"), [("reads", {"changed-read"}), ("dma", {"changed-dma"})])
def test_fuzz_changes_only_what_it_may(only: str, kinds: set[str]) -> None:
    fuzz = Fuzz(p=0.2, **{each: each == only for each in ("reads", "dma", "irqs")})
    under(fuzz)
    assert {change["fault"] for change in fuzz.changes} == kinds
