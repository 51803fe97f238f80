"""What a card takes from the wire: modes, addresses, VLANs, by the control queue (virtio 1.2 §5.1.6.5)."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest

from bellwire.network.features import Net
from bellwire.virtio import Status
from virtio.card import ALL, PATIENCE, Card
from virtio.frames import EVERYBODY, MANY, OURS, Make, frame, tagged

KINDS = {"ours": OURS, "another": bytes.fromhex("020000000099"), "many": MANY, "everybody": EVERYBODY}


class Filtering:
    """Which of some frames come in."""

    def __init__(self, card: Card, far: socket.socket) -> None:
        self.card = card
        self.far = far

    def admitted(self) -> set[str]:
        for to in KINDS.values():
            self.far.send(frame(to))
        self.far.send(frame(OURS, fill=0xFF))  # if ours are taken in, this one ends the wait
        self.card.driver.guest.poll(PATIENCE)
        found = {packet.frame[:6] for packet in self.card.received()}
        return {name for name, address in KINDS.items() if address in found}


@pytest.fixture
def filtering(make: Make, far: socket.socket) -> Filtering:
    return Filtering(make(), far)


def test_a_card_starts_by_taking_everything(filtering: Filtering) -> None:
    assert filtering.admitted() == set(KINDS)


def test_a_selective_card_takes_what_is_for_it(filtering: Filtering) -> None:
    assert filtering.card.command(0, 0, b"\0")
    assert filtering.admitted() == {"ours", "everybody"}
    assert filtering.card.command(0, 0, b"\1")
    assert filtering.admitted() == set(KINDS)


@pytest.mark.parametrize(
    ("number", "admitted"),
    [
        (1, {"ours", "everybody", "many"}),
        (2, {"ours", "everybody", "another"}),
        (5, {"ours"}),
        (4, {"everybody"}),
    ],
    ids=["allmulti", "alluni", "nobcast", "nouni"],
)
def test_modes(filtering: Filtering, number: int, admitted: set[str]) -> None:
    assert filtering.card.command(0, 0, b"\0")
    assert filtering.card.command(0, number, b"\1")
    assert filtering.admitted() == admitted


def table(*addresses: bytes) -> bytes:
    return struct.pack("<I", len(addresses)) + b"".join(addresses)


def test_addresses_can_be_added(filtering: Filtering) -> None:
    assert filtering.card.command(0, 0, b"\0")
    assert filtering.card.command(1, 0, table(KINDS["another"]) + table(MANY))
    assert filtering.admitted() == set(KINDS)
    assert filtering.card.command(1, 0, table() + table())
    assert filtering.admitted() == {"ours", "everybody"}


def test_too_many_addresses_are_all(filtering: Filtering) -> None:
    assert filtering.card.command(0, 0, b"\0")
    assert filtering.card.command(1, 0, table() + table(*[bytes([1, 0, 0, 0, 0, n]) for n in range(65)]))
    assert filtering.admitted() == {"ours", "everybody", "many"}


def test_the_card_can_be_given_another_address(filtering: Filtering) -> None:
    card = filtering.card
    assert card.command(0, 0, b"\0")
    assert card.command(1, 1, KINDS["another"])
    assert filtering.admitted() == {"another", "everybody"}
    assert card.driver.config(0, 6).to_bytes(6, "little") == KINDS["another"]
    card.driver.status = Status(0)
    assert card.driver.config(0, 6).to_bytes(6, "little") == OURS


def test_vlans_are_told_apart_once_that_is_negotiated(make: Make, far: socket.socket) -> None:
    card = make((), {*ALL, Net.CTRL_VLAN})
    assert card.command(2, 0, struct.pack("<H", 5))
    for vlan in (4, 5, 6):
        far.send(tagged(vlan))
    far.send(frame())
    assert [packet.frame for packet in card.await_packets(2)] == [tagged(5), frame()]
    assert card.command(2, 1, struct.pack("<H", 5))
    far.send(tagged(5))
    far.send(frame())
    assert [packet.frame for packet in card.await_packets(1)] == [frame()]


@pytest.mark.parametrize(
    ("kind", "number", "data"),
    [
        (9, 0, b""),
        (0, 6, b"\1"),
        (0, 0, b""),
        (1, 0, b"\xff\xff\xff\xff"),
        (1, 0, table() + table() + b"more"),
        (1, 1, MANY),
        (1, 1, b"short"),
        (2, 0, struct.pack("<H", 4096)),
        (2, 0, b"\0"),
        (4, 0, struct.pack("<H", 2)),
        (4, 0, struct.pack("<H", 0)),
        (5, 0, struct.pack("<Q", 2)),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(make: Make, kind: int, number: int, data: bytes) -> None:
    assert not make().command(kind, number, data)


def test_filters_survive_in_a_snapshot(make: Make, far: socket.socket, tmp_path: Path) -> None:
    card = make()
    assert card.command(0, 0, b"\0")
    core = card.driver.guest.device.core
    before = core.snapshot()
    assert card.command(0, 0, b"\1")
    core.restore(before)
    assert Filtering(card, far).admitted() == {"ours", "everybody"}
