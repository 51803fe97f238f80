"""Options that are changed while the device runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bellwire import Bar, Option, OptionError, PciDevice
from bellwire.testing import Guest


class Metronome(PciDevice, vendor=0x1234, device=0x7EED, class_code=0x088000):
    """Has a pace that may change, and a name that may not."""

    pace = Option(3, help="a number")
    title = Option("none")

    mmio = Bar(0, size=4096)
    shown = mmio.reg(0x00)

    @pace.set
    def set_pace(self, pace: int) -> None:
        if pace > 100:
            raise OptionError("too fast")
        self.shown = pace


@pytest.fixture
def device() -> Iterator[Metronome]:
    with Guest(Metronome) as guest:
        assert isinstance(guest.device, Metronome)
        yield guest.device


def test_the_hook_runs_and_the_option_has_the_new_value(device: Metronome) -> None:
    device.change("pace", "64")
    assert (device.shown, device.pace) == (64, 64)


def test_a_refused_value_changes_nothing(device: Metronome) -> None:
    with pytest.raises(OptionError, match="too fast"):
        device.change("pace", 1000)
    assert (device.shown, device.pace) == (0, 3)


def test_an_option_without_a_hook_is_for_the_start(device: Metronome) -> None:
    with pytest.raises(OptionError, match="option title of metronome is for the start"):
        device.change("title", "x")


@pytest.mark.parametrize(("name", "value"), [("pase", 1), ("pace", "fast"), ("pace", 1.5)])
def test_what_could_not_be_given_at_the_start_cannot_be_given_later(
    device: Metronome, name: str, value: object
) -> None:
    with pytest.raises(OptionError):
        device.change(name, value)


def test_a_device_keeps_its_options_to_itself() -> None:
    with Guest(Metronome) as one, Guest(Metronome) as other:
        one.device.change("pace", 9)
        assert isinstance(other.device, Metronome)
        assert other.device.pace == 3
