"""A state that moves by name, from one version of a device's code to the next."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire import Bar, Saved, SavedBytes, StateError
from bellwire.testing import Guest
from devices.versions import bar, edited, version


class Pace(IntEnum):
    SLOW = 0
    FAST = 1


class Flags(IntFlag):
    ONE = 1
    TWO = 2


def test_what_both_versions_have_is_kept_wherever_it_lies() -> None:
    old = version(**bar(first=(0, 4), second=(4, 4)), count=Saved(0), rest=SavedBytes(8))
    new = version(rest=SavedBytes(8), **bar(second=(0x10, 4), first=(0x20, 4)), count=Saved(0))
    with edited(old, new, first=0x1111, second=0x2222, count=-7, rest=b"12345678") as guest:
        device = guest.device
        assert (device.first, device.second, device.count, bytes(device.rest)) == (0x1111, 0x2222, -7, b"12345678")


def test_what_is_new_has_its_reset_value_and_what_is_gone_is_dropped() -> None:
    mmio = Bar(0, size=64)
    old = version(**bar(word=(0, 4), gone=(4, 4)), lost=Saved(0))
    new = version(mmio=mmio, word=mmio.reg(0), fresh=mmio.reg(4, reset=0x77), more=Saved(5), room=SavedBytes(4))
    with edited(old, new, word=9, gone=8, lost=7) as guest:
        device = guest.device
        assert (device.word, device.fresh, device.more, bytes(device.room)) == (9, 0x77, 5, bytes(4))


def test_a_constant_has_the_value_of_the_new_code() -> None:
    one, two = Bar(0, size=64), Bar(0, size=64)
    old = version(mmio=one, ident=one.reg(0, access="constant", reset=1), word=one.reg(4))
    new = version(mmio=two, ident=two.reg(0, access="constant", reset=2))
    with edited(old, new, word=1) as guest:
        assert guest.device.ident == 2


def test_doorbells_keep_their_counts() -> None:
    def made(offset: int) -> Any:
        mmio = Bar(0, size=64)
        go = mmio.doorbell(offset)
        return version(mmio=mmio, go=go, rang=go.ring(lambda self: None))

    old, new = made(8), made(16)
    with edited(old, new, client=False) as guest:
        assert guest.device.go.rung == 0
    with Guest(old) as before, Guest(new) as after:
        before.ring(old.go)
        before.ring(old.go)
        after.device.core.connected = False
        after.restore(before.snapshot())
        assert after.device.go.rung == 2


@pytest.mark.parametrize(
    ("before", "value", "after", "found"),
    [
        (Saved(0), 1, Saved(False), True),
        (Saved(False), True, Saved(0), 1),
        (Saved(0), 1 << 53, Saved(0.5), float(1 << 53)),
        (Saved(0.5), 3.0, Saved(0), 3),
        (Saved(0), 1, Saved(Pace.SLOW), Pace.FAST),
        (Saved(Flags.ONE), Flags.TWO, Saved(0), 2),
        (Saved(0.0), float("inf"), Saved(1.0), float("inf")),
        (SavedBytes(4), b"1234", SavedBytes(6), b"1234\0\0"),
        (SavedBytes(6), b"1234", SavedBytes(4), b"1234"),
    ],
)
def test_another_type_or_size_is_converted_where_that_is_exact(before: Any, value: Any, after: Any, found: Any) -> None:
    with edited(version(field=before), version(field=after), field=value) as guest:
        kept = guest.device.field
        assert (bytes(kept) if isinstance(kept, memoryview) else kept) == found
        assert isinstance(kept, memoryview | type(found))


@pytest.mark.parametrize(
    ("before", "value", "after", "why"),
    [
        (Saved(0), 2, Saved(False), "was 2, which is no bool"),
        (Saved(0), (1 << 53) + 1, Saved(0.5), "which a float does not hold exactly"),
        (Saved(0.5), 0.5, Saved(0), "was 0.5, which is no integer"),
        (Saved(0.5), float("nan"), Saved(0), "was nan, which is no integer"),
        (Saved(0.5), 1e300, Saved(0), "which 128 bits do not hold"),
        (Saved(0), 5, Saved(Pace.SLOW), "was 5, which is no Pace"),
        (SavedBytes(6), b"123456", SavedBytes(4), "had 6 bytes, of which 6 are in use, and has 4 now"),
        (SavedBytes(16), b"1", Saved(0), "was a bytes and is now a Saved"),
        (Saved(0), 1, SavedBytes(16), "was a int and is now a SavedBytes"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_its_name(before: Any, value: Any, after: Any, why: str) -> None:
    with pytest.raises(StateError, match=rf"dut: field .*{why}.*\. Give the new field another name"):
        edited(version(field=before), version(field=after), field=value)


def test_a_register_may_grow_and_shrink_as_far_as_its_value_fits() -> None:
    small, large, enum = (version(**bar(word=word)) for word in ((0, 2), (0, 8), (0, 4, Pace)))
    saved = version(word=Saved(0))
    for old, new in ((small, large), (large, small), (large, saved), (saved, large)):
        with edited(old, new, client=False, word=7) as guest:
            assert guest.device.word == 7
    with edited(large, enum, word=1) as guest:
        assert guest.device.word is Pace.FAST
    for old, value, new, why in (
        (large, 1 << 16, small, "was 0x10000, which 2 bytes do not hold"),
        (saved, -1, large, "which 8 bytes do not hold"),
    ):
        with pytest.raises(StateError, match=f"dut: word .*{why}"):
            edited(old, new, client=False, word=value)


def test_an_area_moves_with_its_bytes() -> None:
    def made(index: int, offset: int, size: int) -> Any:
        screen = Bar(index, size=1 << 16)
        return version(screen=screen, frame=screen.area(offset, size))

    for new in (made(0, 4096, 8192), made(1, 0, 4096), made(0, 0, 4096)):
        with edited(made(0, 0, 8192), new, client=False, frame=b"picture") as guest:
            assert bytes(guest.device.frame[:8]) == b"picture\0"
    with pytest.raises(StateError, match="frame had 8192 bytes, of which 8192 are in use"):
        edited(made(0, 0, 8192), made(0, 0, 4096), client=False, frame=bytes(8191) + b"x")


def test_a_refused_state_changes_nothing() -> None:
    old, new = version(good=Saved(0), field=Saved(0)), version(good=Saved(0), field=Saved(Pace.SLOW))
    with Guest(old) as before, Guest(new) as after:
        before.device.good, before.device.field = 9, 9
        after.device.good = 3
        untouched = after.snapshot()
        with pytest.raises(StateError, match="field"):
            after.restore(before.snapshot())
        assert after.snapshot() == untouched


def test_the_guests_set_up_goes_along_if_the_device_looks_the_same() -> None:
    old, new = version(**bar(word=(0, 4))), version(**bar(word=(8, 4)), more=Saved(0))
    with Guest(old) as before, Guest(new) as after:
        before.config_write(0x3C, 11, 1)
        after.device.core.reset()
        assert not after.device.bus_master
        after.restore(before.snapshot())
        assert after.device.bus_master
        assert after.config_read(0x3C, 1) == 11


def test_without_a_client_a_device_may_change_its_looks_and_starts_with_fresh_config_space() -> None:
    with edited(version(field=Saved(0)), version({"device": 0x12}, field=Saved(0)), client=False, field=5) as guest:
        assert guest.device.field == 5
        assert guest.config_read(2, 2) == 0x12
        assert not guest.device.bus_master


NUMBERS = st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.booleans()
KINDS = st.sampled_from([0, 0.0, False, Pace.SLOW, Flags.ONE])


@given(NUMBERS, KINDS)
def test_a_number_is_the_same_after_the_move_or_is_refused(value: Any, kind: Any) -> None:
    old, new = version(field=Saved(type(value)(0))), version(field=Saved(kind))
    try:
        with edited(old, new, field=value) as guest:
            assert guest.device.field == value
            assert type(guest.device.field) is type(kind)
    except StateError as error:
        assert "field" in str(error)  # noqa: PT017 either outcome is right
        assert type(kind) is not type(value)
