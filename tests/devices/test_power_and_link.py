"""Power states and wake-up events (PM 1.2 §3.2), and what the PCI Express capability says of the link (§7.5.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bellwire import DeclarationError, Link, Ltr, PciDevice, PortType, Power, PowerState
from bellwire.model import capabilities as pci
from bellwire.testing import Guest, conformance

PME_ENABLE, PME_STATUS = 1 << 8, 1 << 15
LINK_CAPABILITIES, LINK_STATUS, DEVICE_CAPABILITIES_2, DEVICE_CONTROL_2 = 0x0C, 0x12, 0x24, 0x28
LINK_CAPABILITIES_2, LINK_CONTROL_2 = 0x2C, 0x30


class Sleeper(PciDevice, vendor=0x1234, device=0xD0D3, class_code=0x088000):
    """Has every power state but D2, and wakes its guest from all of them but D0."""

    power = Power(d1=True, wake_from=(PowerState.D1, PowerState.D3HOT, PowerState.D3COLD))
    link = Link(speed=16, width=8, slot_clock=True)
    latency = Ltr()

    def setup(self) -> None:
        self.states: list[PowerState] = []

    @power.write
    def changed(self, state: PowerState) -> None:
        self.states.append(state)


class Deaf(PciDevice, vendor=0x1234, device=0xD0D4, class_code=0x088000):
    """Has the power states that every device has."""


class Inside(PciDevice, vendor=0x1234, device=0xD0D5, class_code=0x088000):
    """An endpoint in the root complex."""

    link = Link(port=PortType.INTEGRATED)


TestSleeper = conformance(Sleeper)
TestInside = conformance(Inside)


@pytest.fixture
def guest() -> Iterator[Guest[Sleeper]]:
    with Guest(Sleeper) as guest:
        yield guest


def power(guest: Guest[Any]) -> int:
    return int(guest.device.core.config.at[pci.POWER_MANAGEMENT]) + 4


def express(guest: Guest[Any]) -> int:
    return int(guest.device.core.config.at[pci.EXPRESS])


def test_the_capability_says_which_states_there_are(guest: Guest[Sleeper]) -> None:
    assert guest.config_read(power(guest) - 2, 2) == 0x0003 | 1 << 9 | 1 << 12 | 1 << 14 | 1 << 15


def test_the_guest_chooses_one_of_these_states(guest: Guest[Sleeper]) -> None:
    for state in (1, 2, 3, 0):
        guest.config_write(power(guest), state, 2)
    assert guest.device.states == [PowerState.D1, PowerState.D3HOT, PowerState.D0]
    assert guest.device.power.state is PowerState.D0


def test_a_wake_up_sets_the_status_until_the_guest_clears_it(guest: Guest[Sleeper]) -> None:
    guest.config_write(power(guest), PME_ENABLE | 3, 2)
    assert guest.device.power.wake_enabled
    assert guest.device.power.wake()
    assert guest.config_read(power(guest), 2) & PME_STATUS
    guest.config_write(power(guest), PME_ENABLE | 3, 2)
    assert guest.config_read(power(guest), 2) & PME_STATUS
    guest.config_write(power(guest), PME_STATUS, 2)
    assert not guest.config_read(power(guest), 2) & (PME_STATUS | PME_ENABLE)


def test_a_wake_up_that_nobody_wants_only_sets_the_status(guest: Guest[Sleeper]) -> None:
    guest.config_write(power(guest), 3, 2)
    assert not guest.device.power.wake()
    assert guest.config_read(power(guest), 2) & PME_STATUS


def test_a_device_does_not_wake_its_guest_from_other_states(guest: Guest[Sleeper]) -> None:
    guest.config_write(power(guest), PME_ENABLE, 2)
    assert not guest.device.power.wake()
    assert not guest.config_read(power(guest), 2) & PME_STATUS


def test_a_wake_up_from_d3cold_survives_a_reset(guest: Guest[Sleeper]) -> None:
    guest.config_write(power(guest), PME_ENABLE | 3, 2)
    guest.device.power.wake()
    guest.reset()
    assert guest.config_read(power(guest), 2) & (PME_STATUS | PME_ENABLE | 3) == PME_STATUS | PME_ENABLE


def test_without_a_declaration_there_is_no_wake_up() -> None:
    with Guest(Deaf) as guest:
        guest.config_write(power(guest), 0xFFFF, 2)
        assert guest.config_read(power(guest), 2) == 0x000B


def test_a_wake_up_from_a_state_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"Wrong\.power: wake_from has D2, and the device has no such state"):
        type("Wrong", (PciDevice,), {"power": Power(wake_from=(PowerState.D2,))})


def test_the_link_is_at_its_best_after_power_on(guest: Guest[Sleeper]) -> None:
    at = express(guest)
    assert guest.config_read(at + LINK_CAPABILITIES, 4) == 0x84
    assert guest.config_read(at + LINK_STATUS, 2) == 0x1084
    assert guest.config_read(at + LINK_CAPABILITIES_2, 4) == 0b11110
    assert guest.config_read(at + LINK_CONTROL_2, 2) == 4
    assert (guest.device.link.speed, guest.device.link.width) == (16.0, 8)


def test_the_link_can_train_at_less(guest: Guest[Sleeper]) -> None:
    guest.device.link.train(2.5, 4)
    assert guest.config_read(express(guest) + LINK_STATUS, 2) == 0x1041
    assert (guest.device.link.speed, guest.device.link.width) == (2.5, 4)
    guest.reset()  # does not train it again
    assert guest.device.link.speed == 2.5
    guest.device.link.train(16, 8)
    assert guest.config_read(express(guest) + LINK_STATUS, 2) == 0x1084


@pytest.mark.parametrize(("speed", "width"), [(32.0, 8), (3.0, 1), (16.0, 16), (16.0, 3)])
def test_the_link_cannot_train_at_more_or_in_between(guest: Guest[Sleeper], speed: float, width: int) -> None:
    with pytest.raises(ValueError, match=r"Sleeper\.link cannot run"):
        guest.device.link.train(speed, width)


def test_ltr_is_in_the_pci_express_capability_too(guest: Guest[Sleeper]) -> None:
    assert guest.config_read(express(guest) + DEVICE_CAPABILITIES_2, 4) == 1 << 11
    guest.config_write(express(guest) + DEVICE_CONTROL_2, 0xFFFF, 2)
    assert guest.config_read(express(guest) + DEVICE_CONTROL_2, 2) == 1 << 10


def test_an_integrated_endpoint_has_no_link() -> None:
    with Guest(Inside) as guest:
        at = express(guest)
        assert guest.config_read(at + 2, 2) == 0x0092
        assert guest.config_read(at + LINK_CAPABILITIES, 4) == 0
        assert guest.config_read(at + LINK_STATUS, 2) == 0
        assert (guest.device.link.speed, guest.device.link.width) == (0.0, 0)
        with pytest.raises(ValueError, match="cannot run"):
            guest.device.link.train(2.5, 1)


@pytest.mark.parametrize(
    ("words", "message"), [({"speed": 3.0}, "the speed is one of"), ({"width": 3}, "the width is one of")]
)
def test_a_link_that_the_capability_cannot_express_is_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=rf"Wrong\.link: {message}"):
        type("Wrong", (PciDevice,), {"link": Link(**words)})
