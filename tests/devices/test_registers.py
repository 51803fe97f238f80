"""Registers: access words, narrow, wide and straddling accesses, hooks, types."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, IntFlag

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire import Bar, Doorbell, GuestError, IoRegion, PciDevice, Register, Saved
from bellwire.declare.register import MOST_VALUES
from bellwire.model.core import Core
from bellwire.model.state import State
from bellwire.testing import Guest


class Flags(IntFlag):
    READY = 1
    ERROR = 2


class Mode(IntEnum):
    IDLE = 0
    BUSY = 1


class Board(PciDevice, vendor=0x1234, device=1, class_code=0xFF0000, name="register-board"):
    mmio = Bar(0, size=256, fill=0xEE)
    rw = mmio.reg(0x00, reset=0x1122_3344)
    ro = mmio.reg(0x04, access="ro", reset=5)
    wo = mmio.reg(0x08, access="wo")
    w1c = mmio.reg(0x0C, access="w1c", reset=0xFF)
    w1s = mmio.reg(0x10, access="w1s")
    rc = mmio.reg(0x14, access="rc", reset=0x0A0B_0C0D)
    constant = mmio.reg(0x18, access="constant", reset=7)
    reserved = mmio.reg(0x1C, access="reserved", reset=9)
    missing = mmio.reg(0x20, access="unimplemented", reset=3)
    flags = mmio.reg(0x24, Flags)
    wide = mmio.reg(0x28, size=8)
    odd = mmio.reg(0x30, size=3)
    masked = mmio.reg(0x34, writable=0x0000_FF00, reset=0xFFFF_FFFF)
    computed = mmio.reg(0x38, access="ro")
    mode = mmio.reg(0x3C, Mode)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    @rw.write
    def rw_written(self, value: int) -> None:
        self.seen.append(("rw", value))

    @wo.write
    def wo_written(self, value: int) -> None:
        self.seen.append(("wo", value))

    @w1c.write
    def w1c_written(self, value: int) -> None:
        self.seen.append(("w1c", value))

    @flags.write
    def flags_written(self, value: Flags) -> None:
        assert isinstance(value, Flags)
        self.seen.append(("flags", value))

    @computed.read
    def compute(self) -> int:
        return 0x1_8765_4321


@pytest.fixture
def guest() -> Iterator[Guest[Board]]:
    with Guest(Board) as guest:
        yield guest


def board(guest: Guest[Board]) -> Board:
    assert isinstance(guest.device, Board)
    return guest.device


def test_rw_stores_and_tells_the_hook(guest: Guest[Board]) -> None:
    guest.write(Board.rw, 0xDEAD_BEEF)
    assert guest.read(Board.rw) == board(guest).rw == 0xDEAD_BEEF
    assert board(guest).seen == [("rw", 0xDEAD_BEEF)]


def test_the_store_happens_before_the_hook() -> None:
    class Late(PciDevice, vendor=2, device=1, class_code=1, name="late"):
        mmio = Bar(0, size=16)
        one = mmio.reg(0)
        two = mmio.reg(4)

        @one.write
        def copy(self, value: int) -> None:
            self.two = self.one

    with Guest(Late) as guest:
        guest.write(Late.one, 9)
        assert guest.read(Late.two) == 9


def test_ro_drops_writes(guest: Guest[Board]) -> None:
    guest.write(Board.ro, 99)
    assert guest.read(Board.ro) == 5
    board(guest).ro = 6
    assert guest.read(Board.ro) == 6


def test_wo_reads_as_nothing_but_the_device_sees_it(guest: Guest[Board]) -> None:
    guest.write(Board.wo, 77)
    assert guest.read(Board.wo) == 0xEEEE_EEEE
    assert board(guest).wo == 77


def test_w1c_clears_the_ones_written(guest: Guest[Board]) -> None:
    guest.write(Board.w1c, 0x0F)
    assert guest.read(Board.w1c) == 0xF0
    assert board(guest).seen == [("w1c", 0x0F)]


def test_w1s_sets_the_ones_written(guest: Guest[Board]) -> None:
    guest.write(Board.w1s, 0x05)
    guest.write(Board.w1s, 0x50)
    assert guest.read(Board.w1s) == 0x55


def test_rc_clears_the_bytes_read(guest: Guest[Board]) -> None:
    assert guest.read(Board.rc, size=1) == 0x0D
    assert guest.read(Board.rc) == 0x0A0B_0C00
    assert guest.read(Board.rc) == 0


def test_constant_cannot_be_assigned_by_anybody(guest: Guest[Board]) -> None:
    guest.write(Board.constant, 1)
    with pytest.raises(AttributeError, match="constant"):
        board(guest).constant = 1
    assert guest.read(Board.constant) == 7


def test_reserved_reads_as_nothing(guest: Guest[Board]) -> None:
    guest.write(Board.reserved, 1)
    assert guest.read(Board.reserved) == 0xEEEE_EEEE


def test_unimplemented_is_logged_and_keeps_its_reset_value(
    guest: Guest[Board], caplog: pytest.LogCaptureFixture
) -> None:
    guest.write(Board.missing, 1)
    assert guest.read(Board.missing) == 3
    assert [record.getMessage() for record in caplog.records] == [
        "guest write of Board.missing, which is documented but not implemented",
        "guest read of Board.missing, which is documented but not implemented",
    ]


def test_a_typed_register_gives_its_type(guest: Guest[Board]) -> None:
    guest.write(Board.flags, 3)
    assert board(guest).flags is Flags.READY | Flags.ERROR
    board(guest).flags &= ~Flags.ERROR
    assert guest.read(Board.flags) == 1


def test_a_value_that_the_registers_type_has_not_is_the_guests_mistake_and_is_dropped(guest: Guest[Board]) -> None:
    guest.write(Board.mode, Mode.BUSY)
    with pytest.raises(GuestError, match=r"write of 0x2 to Board\.mode: Mode has no such value"):
        guest.write(Board.mode, 2)
    assert board(guest).mode is Mode.BUSY


def test_a_guest_that_goes_through_all_combinations_of_flags_uses_up_no_memory(guest: Guest[Board]) -> None:
    for value in range(2 * MOST_VALUES):
        guest.write(Board.flags, value)
    assert len(Flags._value2member_map_) <= MOST_VALUES + 2
    guest.write(Board.flags, 1)
    assert board(guest).flags is Flags.READY


def test_only_writable_bits_take_a_guests_write(guest: Guest[Board]) -> None:
    guest.write(Board.masked, 0)
    assert guest.read(Board.masked) == 0xFFFF_00FF


def test_a_read_hook_gives_the_value_cut_to_size(guest: Guest[Board]) -> None:
    assert guest.read(Board.computed) == 0x8765_4321
    assert guest.read(Board.computed, offset=1, size=1) == 0x43


def test_assigning_from_the_device_cuts_and_runs_no_hook(guest: Guest[Board]) -> None:
    board(guest).rw = 0x1_0000_0002
    board(guest).odd = -1
    assert guest.read(Board.rw) == 2
    assert guest.read(Board.odd) == 0xFF_FFFF
    assert board(guest).seen == []


def test_a_narrow_write_of_rw_keeps_the_other_bytes(guest: Guest[Board]) -> None:
    guest.write(Board.rw, 0xAA, offset=1, size=1)
    assert guest.read(Board.rw) == 0x1122_AA44
    assert board(guest).seen == [("rw", 0x1122_AA44)]


def test_a_narrow_write_of_w1c_touches_only_its_bytes(guest: Guest[Board]) -> None:
    board(guest).w1c = 0xFFFF
    guest.write(Board.w1c, 0xFF, offset=1, size=1)
    assert board(guest).w1c == 0x00FF
    assert board(guest).seen == [("w1c", 0xFF00)]


def test_a_narrow_write_of_wo_keeps_the_other_bytes_and_tells_its_own(guest: Guest[Board]) -> None:
    guest.write(Board.wo, 0x2211, size=2)
    guest.write(Board.wo, 0x4433, offset=2, size=2)
    assert board(guest).wo == 0x4433_2211
    assert board(guest).seen == [("wo", 0x2211), ("wo", 0x4433_0000)]


def test_a_wide_write_is_split_from_the_lowest_address_up(guest: Guest[Board]) -> None:
    guest.write(0, 0x0000_0009_0000_0008, offset=Board.wo.offset, size=8)
    assert board(guest).seen == [("wo", 8), ("w1c", 9)]


def test_a_straddling_read_joins_its_parts(guest: Guest[Board]) -> None:
    assert guest.read(0, Board.rw.offset + 2, 4) == 0x0005_1122


def test_holes_read_as_the_bars_fill_and_drop_writes(guest: Guest[Board]) -> None:
    guest.write(0, 0x55, offset=0x80, size=1)
    assert guest.read(0, 0x80, 4) == 0xEEEE_EEEE


def test_reset_brings_the_reset_values_back(guest: Guest[Board]) -> None:
    guest.write(Board.rw, 1)
    guest.device.core.reset()
    assert guest.read(Board.rw) == 0x1122_3344


@settings(max_examples=100)
@given(
    first=st.integers(0, 7),
    size=st.integers(1, 8),
    value=st.integers(0, 2**64 - 1),
    start=st.integers(0, 2**64 - 1),
)
def test_any_access_of_an_rw_register_touches_exactly_its_bytes(first: int, size: int, value: int, start: int) -> None:
    size = min(size, 8 - first)
    with Guest(Board) as guest:
        board(guest).wide = start
        guest.write(Board.wide, value, offset=first, size=size)
        expected = bytearray(start.to_bytes(8, "little"))
        expected[first : first + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        assert guest.read(Board.wide) == int.from_bytes(expected, "little")
        assert guest.read(Board.wide, offset=first, size=size) == value & ((1 << 8 * size) - 1)


def test_the_most_derived_hook_wins() -> None:
    class Base(PciDevice, vendor=2, device=1, class_code=1, name="base-hook"):
        mmio = Bar(0, size=16)
        one = mmio.reg(0)
        calls: list[str]

        @one.write
        def base(self, value: int) -> None:
            self.calls = ["base"]

    class Derived(Base, name="derived-hook"):
        @Base.one.write
        def derived(self, value: int) -> None:
            self.calls = ["derived"]

    with Guest(Derived) as guest:
        guest.write(Derived.one, 1)
        assert guest.device.calls == ["derived"]


@pytest.mark.parametrize("kind", [PciDevice, Register, Doorbell, IoRegion, Saved, Core, State])
def test_nothing_in_python_stands_in_the_way_of_an_attribute(kind: type[object]) -> None:
    """One such method makes each access to each attribute several times as slow (CPython specializes it no more)."""
    for name in ("__getattr__", "__getattribute__", "__setattr__"):
        assert getattr(kind, name, None) in (None, getattr(object, name, None)), name
