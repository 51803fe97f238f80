"""Faults of interrupts on the INTx line, which has levels and no messages."""

from __future__ import annotations

import pytest

from bellwire import Bar, IntX, MsiX, OptionError, PciDevice
from bellwire.faults.changed import Fuzz
from bellwire.faults.fault import Fault
from bellwire.faults.interrupts import DoubleIrq, IrqStorm, SpuriousIrq, WrongVector
from bellwire.faults.scenario import Scenario
from bellwire.testing import Guest


class Wired(PciDevice, vendor=0x1234, device=0x567A, class_code=0xFF0000):
    """It raises the line at a ring, and lowers it when that is acknowledged."""

    line = IntX()
    mmio = Bar(0, size=4096)
    go = mmio.doorbell(0x00)
    ack = mmio.doorbell(0x04)

    @go.ring
    def do_go(self) -> None:
        self.line.high()

    @ack.ring
    def do_ack(self) -> None:
        self.line.low()


class Single(Wired):
    """It has a single vector besides."""

    irq = MsiX(1)


class Wire:
    """A guest, and the levels that it has got on the line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *faults: Fault, kind: type[PciDevice] = Wired) -> None:
        self.guest = Guest(kind)
        self.levels: list[bool] = []
        monkeypatch.setattr(self.guest, "level", self.levels.append)
        for each in faults:
            self.guest.filters.add(each)

    def interrupt(self) -> None:
        """Let the device interrupt, and handle it."""
        self.guest.ring(Wired.go)
        self.guest.ring(Wired.ack)


def test_a_line_pulses_without_a_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(monkeypatch, fault := SpuriousIrq(interval="10ms"))
    with wire.guest:
        wire.guest.advance(0.02)
        assert wire.levels == [True, False, True, False]
        assert fault.report()["struck"] == 2


def test_a_pulse_leaves_a_line_high_that_the_device_has_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(monkeypatch, SpuriousIrq(interval="10ms"))
    with wire.guest:
        wire.guest.ring(Wired.go)
        wire.guest.advance(0.01)
        assert wire.levels == [True, True, True]


def test_a_line_does_not_pulse_while_the_guest_has_disabled_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(monkeypatch, SpuriousIrq(interval="10ms"))
    with wire.guest:
        wire.guest.config_write(4, 0x407, 2)
        wire.levels.clear()
        wire.guest.advance(0.01)
        assert wire.levels == []


def test_a_storm_on_a_line_comes_pulse_by_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(monkeypatch, IrqStorm(at=1, count=3))
    with wire.guest:
        wire.interrupt()
        wire.guest.advance(1)
        assert wire.levels == [True, False] * 4


def test_an_interrupt_of_a_line_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(monkeypatch, DoubleIrq(at=1))
    with wire.guest:
        wire.interrupt()
        wire.guest.advance(1)
        wire.interrupt()
        assert wire.levels == [True, False] * 3


@pytest.mark.parametrize("kind", [Wired, Single])
def test_a_device_without_a_second_vector_refuses_a_wrong_one(kind: type[PciDevice]) -> None:
    with Guest(kind) as guest, pytest.raises(OptionError, match="wrong-vector: the device has no two vectors of MSI"):
        guest.filters.add(WrongVector())


def test_the_changes_of_fuzz_on_a_line_are_a_scenario_that_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def exercise(*faults: Fault) -> list[bool]:
        wire = Wire(monkeypatch, *faults)
        with wire.guest as guest:
            for _ in range(20):
                guest.ring(Wired.go)
                guest.advance(0.01)
                guest.ring(Wired.ack)
                guest.advance(0.1)
        return wire.levels

    fuzz = Fuzz(p=0.5, seed=1)
    seen = exercise(fuzz)
    assert {change["fault"] for change in fuzz.changes} == {"lost-irq", "double-irq", "late-irq"}
    scenario = Scenario(about="a", driver="b", fault=tuple(fuzz.changes), name="x")
    assert exercise(*scenario.faults(Wired)) == seen
