"""Options know what they can be, and a device is not made with anything else."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from bellwire import DeclarationError, Option, OptionError, PciDevice
from bellwired.find import bundled


class Speed(IntEnum):
    SLOW = 1
    FAST = 2


class Choosy(PciDevice, vendor=0x1234, device=0x0C05, class_code=0x088000):
    rings = Option(8, least=1, most=64)
    pace = Option(0.5, least=0)
    top = Option(3, most=9)
    mode = Option("value", choices=("value", "shadow"))
    block = Option(512, choices=(512, 4096))
    odd = Option(1, check=lambda number: None if number % 2 else "an odd number")
    place = Option(Path("here"))
    flag = Option(False)
    speed = Option(Speed.SLOW)

    def check_options(self) -> None:
        if self.rings > 32 and self.flag:
            raise OptionError("rings and flag do not go together")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rings": 0}, "option rings=0: expected 1 to 64"),
        ({"rings": "0x41"}, "option rings=0x41: expected 1 to 64"),
        ({"rings": "1K"}, "option rings=1K: expected 1 to 64"),
        ({"rings": 1.5}, "option rings=1.5: expected a value of type int"),
        ({"rings": True}, "option rings=True: expected a value of type int"),
        ({"rings": "K"}, "option rings=K: expected a value of type int"),
        ({"rings": "9" * 5000}, "expected a value of type int"),
        ({"pace": -1}, "option pace=-1: expected at least 0"),
        ({"pace": "nan"}, "option pace=nan: expected a finite number"),
        ({"pace": float("inf")}, "option pace=inf: expected a finite number"),
        ({"pace": 10**400}, "expected a value of type float"),
        ({"top": 10}, "option top=10: expected at most 9"),
        ({"mode": "other"}, "option mode=other: expected value or shadow"),
        ({"block": 513}, "option block=513: expected 512 or 4096"),
        ({"odd": 2}, "option odd=2: expected an odd number"),
        ({"place": "a\0b"}, "option place='a\\x00b': expected no NUL"),
        ({"place": 3}, "option place=3: expected a value of type path"),
        ({"flag": "perhaps"}, "option flag=perhaps: expected yes or no"),
        ({"speed": 3}, "option speed=3: expected a value of type Speed"),
        ({"speed": "3"}, "option speed=3: expected a value of type Speed"),
        ({"rings": 33, "flag": True}, "rings and flag do not go together"),
    ],
)
def test_a_value_that_will_not_do_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as raised:
        Choosy(**options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_values_at_the_bounds_will_do() -> None:
    assert Choosy(rings=1, pace=0, top="-5", mode="shadow", block=4096, odd=3).rings == 1
    assert Choosy(rings="64").rings == 64


def test_a_change_is_checked_too() -> None:
    class Changing(Choosy, device=0x0C06):
        seen = 0

        @Choosy.rings.set
        def resize(self, rings: int) -> None:
            self.seen = rings

    device = Changing()
    with pytest.raises(OptionError, match="rings=65: expected 1 to 64"):
        device.change("rings", "65")
    device.change("rings", 64)
    assert device.seen == 64


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (Option(0, least=1), "the default 0 is not what is allowed: at least 1"),
        (Option("x", choices=("y", "z")), "the default 'x' is not what is allowed: y or z"),
        (Option("x", least=1), "least and most are for numbers, and the default is a str"),
        (Option(True, most=1), "least and most are for numbers, and the default is a bool"),
        (Option(1, least=1, choices=(1, 2)), "choices exclude least and most"),
        (Option(1, check=lambda _: "something else"), "the default 1 is not what is allowed: something else"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_at_import(option: Option[Any], message: str) -> None:
    with pytest.raises(DeclarationError) as raised:
        type("Odd", (PciDevice,), {"knob": option}, vendor=0x1234, device=1, class_code=0)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", sorted(bundled()))
def test_every_number_of_a_bundled_device_has_bounds(name: str) -> None:
    for option in bundled()[name].layout.options.values():
        if isinstance(option.default, int | float) and not isinstance(option.default, bool):
            assert option.least is not None or option.choices or option._check is not None, option
