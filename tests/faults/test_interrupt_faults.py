"""Faults of interrupts."""

from __future__ import annotations

import pytest

from bellwire.errors import OptionError
from bellwire.faults.fault import Fault
from bellwire.faults.interrupts import DoubleIrq, IrqStorm, LateIrq, LostIrq, SpuriousIrq, WrongVector
from bellwire.filters import Filter
from bellwire.filters.builtin.delay import Delay
from bellwire.testing import Guest
from faults.part import Part, guest
from vfio_user import IrqIndex

MSIX = IrqIndex.MSIX


def vectors(it: Guest[Part]) -> dict[int, int]:
    return {vector: count for (_, vector), count in it.interrupts.items()}


def test_an_interrupt_is_lost() -> None:
    with guest(LostIrq(every=2)) as it:
        for _ in range(5):
            it.ring(Part.copy)
        assert vectors(it) == {1: 3}


def test_only_the_vector_that_is_named_is_lost() -> None:
    with guest(LostIrq(vector=2)) as it:
        it.device.irq[1].trigger()
        it.device.irq[2].trigger()
        assert vectors(it) == {1: 1}


@pytest.mark.parametrize("fault", [LostIrq, SpuriousIrq])
def test_a_vector_that_the_device_lacks_is_refused(fault: type[Fault]) -> None:
    with pytest.raises(OptionError, match=r"vector=4: the device has 0 to 3"), guest(fault(vector=4)):
        pass


def test_the_rise_of_intx_is_lost() -> None:
    with guest(LostIrq(at=1)) as it:
        it.config_write(it.device.core.config.at[0x11] + 2, 0, 2)  # MSI-X off
        it.device.line.high()
        assert not it.line
        it.device.line.low()
        it.device.line.high()
        assert it.line


def test_an_interrupt_is_late() -> None:
    with guest(LateIrq(by="20ms")) as it:
        it.ring(Part.copy)
        assert vectors(it) == {}
        it.advance(0.02)
        assert vectors(it) == {1: 1}


@pytest.mark.parametrize(
    "filters", [[LateIrq(by="20ms")], [Delay(interrupt="5ms"), LateIrq(by="20ms")]], ids=["late", "delayed"]
)
def test_the_rise_of_intx_that_is_late_is_lost_if_the_fall_overtakes_it(filters: list[Filter]) -> None:
    with guest(*filters) as it:
        it.config_write(it.device.core.config.at[0x11] + 2, 0, 2)  # MSI-X off
        it.device.line.high()
        it.device.line.low()
        it.advance(1)
        assert (it.line, it.device.line.asserted) == (False, False)
        it.device.line.high()
        it.advance(1)
        assert it.line


def test_an_interrupt_comes_twice() -> None:
    with guest(DoubleIrq(at=1)) as it:
        it.ring(Part.copy)
        it.ring(Part.copy)
        assert vectors(it) == {1: 3}


def test_an_interrupt_comes_by_another_vector() -> None:
    with guest(WrongVector(by=2)) as it:
        it.device.irq[1].trigger()
        it.device.irq[3].trigger()
        assert vectors(it) == {3: 1, 1: 1}


def test_a_storm_comes_in_bursts() -> None:
    with guest(IrqStorm(at=1, count=100)) as it:
        it.ring(Part.copy)
        it.advance(0.001)
        assert vectors(it) == {1: 65}
        it.advance(1)
        assert vectors(it) == {1: 101}


def test_interrupts_come_without_a_cause() -> None:
    with guest(SpuriousIrq(vector=3, interval="10ms", after="1s", **{"for": "50ms"})) as it:
        it.advance(1.0)
        assert vectors(it) == {}
        it.advance(1.0)
        assert vectors(it) == {3: 4}


def test_a_guest_that_does_not_listen_gets_none() -> None:
    with guest(SpuriousIrq(interval="10ms")) as it:
        it.reset()  # turns MSI-X off
        it.advance(0.1)
        assert vectors(it) == {}
