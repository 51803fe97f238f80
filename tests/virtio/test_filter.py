"""Which frames a card takes in (virtio 1.2 §5.1.6.5), without a card around it."""

from __future__ import annotations

import ctypes

import pytest

from bellwire.bundled.virtio_net.filter import MOST_ADDRESSES, Filter, Mode
from bellwire.network.link import HEADER_SIZE

OWN, OTHER, GROUP, EVERYBODY = (bytes.fromhex(text * 6) for text in ("52", "56", "53", "ff"))


def fresh(state: bytearray | None = None) -> Filter:
    return Filter.at(memoryview(state or bytearray(ctypes.sizeof(Filter))), OWN)


def frame(to: bytes, vlan: int | None = None) -> memoryview:
    tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2, "big")
    return memoryview(bytes(HEADER_SIZE) + to + OTHER + tag + b"\x08\x00" + bytes(46))


@pytest.mark.parametrize("to", [OWN, OTHER, GROUP, EVERYBODY])
def test_a_card_starts_with_all_taken_in(to: bytes) -> None:
    assert fresh().admits(frame(to))


def test_a_state_that_is_taken_over_counts_at_once() -> None:
    state = bytearray(ctypes.sizeof(Filter))
    before = fresh(state)
    before.set_mode(Mode.SELECTIVE, True)
    before.set_tables([OTHER], [])
    after = fresh(state)
    assert [after.admits(frame(to)) for to in (OWN, OTHER, GROUP, EVERYBODY)] == [True, True, False, True]


@pytest.mark.parametrize(
    ("modes", "taken"),
    [
        (Mode.SELECTIVE, {OWN, EVERYBODY}),
        (Mode.SELECTIVE | Mode.ALL_MULTICAST, {OWN, GROUP, EVERYBODY}),
        (Mode.SELECTIVE | Mode.ALL_UNICAST, {OWN, OTHER, EVERYBODY}),
        (Mode.NO_MULTICAST, {OWN, OTHER, EVERYBODY}),
        (Mode.NO_UNICAST, {GROUP, EVERYBODY}),
        (Mode.NO_BROADCAST, {OWN, OTHER, GROUP}),
        (Mode.SELECTIVE | Mode.NO_BROADCAST, {OWN}),
        (Mode.ALL_MULTICAST | Mode.NO_MULTICAST, {OWN, OTHER, EVERYBODY}),
    ],
)
def test_modes_say_which_addresses_are_taken(modes: Mode, taken: set[bytes]) -> None:
    card = fresh()
    for mode in Mode:
        card.set_mode(mode, mode in modes)
    assert {to for to in (OWN, OTHER, GROUP, EVERYBODY) if card.admits(frame(to))} == taken


def test_a_mode_can_be_taken_back() -> None:
    card = fresh()
    card.set_mode(Mode.NO_UNICAST, True)
    card.set_mode(Mode.SELECTIVE, True)
    card.set_mode(Mode.NO_UNICAST, False)
    assert card.admits(frame(OWN))
    assert not card.admits(frame(OTHER))


def test_tables_name_the_other_addresses_and_replace_what_was_there() -> None:
    card = fresh()
    card.set_mode(Mode.SELECTIVE, True)
    card.set_tables([OTHER], [GROUP])
    assert [card.admits(frame(to)) for to in (OTHER, GROUP)] == [True, True]
    card.set_tables([], [])
    assert [card.admits(frame(to)) for to in (OTHER, GROUP)] == [False, False]


@pytest.mark.parametrize(("count", "all_taken"), [(MOST_ADDRESSES, False), (MOST_ADDRESSES + 1, True)])
def test_with_more_addresses_than_fit_all_of_the_kind_are_taken(count: int, all_taken: bool) -> None:
    many = [bytes([2, 0, 0, 0, 1, number]) for number in range(count)]
    groups = [bytes([3, 0, 0, 0, 1, number]) for number in range(count)]
    for tables, other in (((many, []), OTHER), (([], groups), GROUP)):
        card = fresh()
        card.set_mode(Mode.SELECTIVE, True)
        card.set_tables(*tables)
        assert all(card.admits(frame(to)) for to in tables[0] + tables[1])
        assert card.admits(frame(other)) is all_taken
        assert not card.admits(frame(GROUP if other is OTHER else OTHER))


def test_another_address_replaces_the_cards_own() -> None:
    card = fresh()
    card.set_mode(Mode.SELECTIVE, True)
    assert card.mac == OWN
    card.mac = OTHER
    assert card.mac == OTHER
    assert [card.admits(frame(to)) for to in (OWN, OTHER)] == [False, True]


@pytest.mark.parametrize("vlan", [0, 1, 7, 8, 4095])
def test_vlans_are_told_apart_once_they_are(vlan: int) -> None:
    card = fresh()
    tagged = frame(OWN, 0xA000 | vlan)  # with a priority
    assert card.admits(tagged)
    card.by_vlan = 1
    assert not card.admits(tagged)
    assert card.admits(frame(OWN))
    card.set_vlan(vlan, True)
    assert card.admits(tagged)
    assert not card.admits(frame(OWN, vlan ^ 9))
    card.set_vlan(vlan ^ 1, True)
    card.set_vlan(vlan, False)
    assert not card.admits(tagged)
    assert card.admits(frame(OWN, vlan ^ 1))
