"""What ``pytest --saved`` does to a device (tests/saved.py)."""

from __future__ import annotations

from bellwire.bundled.serial import Serial
from bellwire.testing import Guest
from saved import is_due, move


def test_a_device_is_saved_at_first_before_each_access_and_then_ever_more_rarely() -> None:
    due = [access for access in range(1, 1000) if is_due(access)]
    assert due == [*range(1, 101), 128, 192, 256, 384, 512, 768]


def test_another_device_goes_on_with_the_state_of_the_one_before() -> None:
    with Guest(Serial, backend="null") as guest:
        guest.write(Serial.scr, 0x5A)
        before, stream = guest.device.core.state, guest.device.stream
        move(guest)
        assert guest.device.core.state is not before
        assert guest.device.stream is stream
        assert guest.read(Serial.scr) == 0x5A


def test_the_same_device_loads_its_own_state() -> None:
    with Guest(Serial, backend="null") as guest:
        before = guest.device.core.state
        guest.write(Serial.scr, 0x5A)
        move(guest, anew=False)
        assert guest.device.core.state is before
        assert guest.read(Serial.scr) == 0x5A
