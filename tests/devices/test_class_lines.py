"""The widths of a class line's numbers, and the values that a doorbell may have."""

from __future__ import annotations

from typing import Any

import pytest

from bellwire import Bar, DeclarationError, PciDevice


def make(called: str, **line: Any) -> Any:
    """A device class with this class line."""
    kind: Any = type
    return kind(called, (PciDevice,), {}, **line)


GOOD = {"vendor": 2, "device": 2, "class_code": 3, "revision": 4}


@pytest.mark.parametrize(
    ("key", "last"), [("vendor", 0xFFFE), ("device", 0xFFFF), ("class_code", 0xFF_FFFF), ("revision", 0xFF)]
)
def test_a_number_fits_in_its_field(key: str, last: int) -> None:
    made = make("Fits", name=f"fits-{key}", **GOOD | {key: last})
    assert getattr(made.identity, key) == last
    width = (last + 1).bit_length() - 1 if key != "vendor" else 16
    for number in (-1, 1 << width):
        with pytest.raises(DeclarationError, match=f"{key}=.* does not fit in {width} bits"):
            make("Wide", name="wide", **GOOD | {key: number})


def test_what_an_empty_slot_reads_as_is_no_vendor() -> None:
    with pytest.raises(DeclarationError, match="is what a guest reads of an empty slot"):
        make("Nobody", name="nobody", **GOOD | {"vendor": 0xFFFF})


def test_a_subclass_inherits_what_its_line_leaves_out() -> None:
    class Base(PciDevice, vendor=2, device=2, class_code=3, revision=4, subsystem=(5, 6), express=False, name="base"):
        pass

    class Same(Base, name="same"):
        pass

    class Other(Base, device=7, subsystem=(8, 9), express=True, no_soft_reset=False, name="other"):
        pass

    assert Same.identity == Base.identity
    assert Other.identity is not None
    found = Other.identity
    assert (found.vendor, found.device, found.class_code, found.revision) == (2, 7, 3, 4)
    assert (found.subsystem_vendor, found.subsystem, found.express, found.no_soft_reset) == (8, 9, True, False)


@pytest.mark.parametrize("subsystem", [(0x1_0000, 0), (0, 0x1_0000), (-1, 0), (0, -1)])
def test_a_subsystem_is_a_pair_of_16_bit_numbers(subsystem: tuple[int, int]) -> None:
    with pytest.raises(DeclarationError, match="subsystem is a pair of 16-bit numbers"):
        make("Sub", name="sub", subsystem=subsystem, **GOOD)


@pytest.mark.parametrize("missing", ["vendor", "device", "class_code"])
def test_a_line_has_all_three_numbers_or_none(missing: str) -> None:
    with pytest.raises(DeclarationError, match=f"{missing} missing in the class line"):
        make("Half", name="half", **{k: v for k, v in GOOD.items() if k != missing})


VALUES = [
    (1, range(5, 6), ""),
    (1, range(64), ""),
    (1, range(65), "values has 1 to 64 values, not 65"),
    (1, range(5, 5), "values has 1 to 64 values, not 0"),
    (1, range(192, 256), ""),
    (1, range(250, 257), "do not fit in 1 bytes"),
    (2, range(250, 257), ""),
    (1, range(-1, 3), "do not fit in 1 bytes"),
    (1, range(3), ""),
]


@pytest.mark.parametrize(("size", "values", "fault"), VALUES)
def test_a_doorbell_has_1_to_64_values_of_its_size(size: int, values: range, fault: str) -> None:
    bell = Bar(0, size=4096).doorbell(0, size=size, values=values)
    if fault:
        with pytest.raises(DeclarationError, match=fault):
            bell.check("Here")
    else:
        bell.check("Here")
        assert bell.accepted == values
