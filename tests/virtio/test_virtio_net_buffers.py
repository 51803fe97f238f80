"""Where a card puts packets, and what it asks of the driver for them (virtio 1.2 §5.1.6)."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bellwire.bundled.virtio_net import VirtioNet
from bellwire.bundled.virtio_net.lane import Lane
from bellwire.bundled.virtio_net.wire import made_up_mac
from bellwire.network import LARGEST_PACKET
from bellwire.network.features import Net
from bellwire.pieces import MOST_PIECES
from bellwire.testing import Guest
from bellwire.virtio import Feature, Status
from vfio_user import IrqIndex
from virtio.card import ALL, HEADER, PATIENCE, PLAIN, Card
from virtio.frames import MANY, Make, frame, tagged


class Wire:
    """An end of a link that has ``packets``, and keeps what buffers it was given."""

    def __init__(self, card: Card, monkeypatch: pytest.MonkeyPatch, packets: int) -> None:
        self.lane: Any = card.device.lanes[0]
        self.left = packets
        self.calls: list[list[int]] = []
        monkeypatch.setattr(self.lane.end, "receive", self.receive)

    def receive(self, buffers: Sequence[memoryview]) -> int:
        self.calls.append([len(buffer) for buffer in buffers])
        if not self.left:
            return 0
        self.left -= 1
        packet = PLAIN + frame()
        for buffer in buffers:
            some = packet[: len(buffer)]
            buffer[: len(some)] = some
            packet = packet[len(some) :]
        return HEADER.size + len(frame())


def lane_of(card: Card) -> Lane:
    lane: Lane = card.device.lanes[0]
    return lane


@pytest.mark.parametrize(("size", "buffers"), [(100, 1), (188, 1), (189, 2), (388, 2), (389, 3)])
def test_a_packet_is_received_into_as_many_buffers_as_the_last_one_took(
    make: Make, ring: set[int], far: socket.socket, size: int, buffers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several are received right into: only the first of its size is copied. To one buffer, the link copies it."""
    card = make(ring, room=200)
    sent = [frame(size=size, fill=number) for number in range(2)]
    far.send(sent[0])
    first = card.await_packets()
    end, given = lane_of(card).end, []
    usual = end.receive

    def receive(views: Sequence[memoryview]) -> int:
        given.append([len(view) for view in views])
        return usual(views)

    monkeypatch.setattr(end, "receive", receive)
    with mock.patch.object(VirtioNet, "deliver", side_effect=AssertionError("copied")):
        far.send(sent[1])
        second = card.await_packets()
    assert [(packet.frame, packet.header[-1]) for packet in first + second] == [(one, buffers) for one in sent]
    several = [200] * buffers + [LARGEST_PACKET - 200 * buffers]
    assert given[0] == (several if buffers > 1 else [LARGEST_PACKET])


@pytest.mark.parametrize("room", [12, 13, 29, 30, 31, 66, 67, 71, 72])
@pytest.mark.parametrize("vlan", [5, 6])
def test_a_filter_sees_the_vlan_however_small_the_first_buffer_is(
    make: Make, far: socket.socket, room: int, vlan: int
) -> None:
    """§5.1.6.5.3: header, addresses and tag may be in several buffers."""
    card = make((), {*ALL, Net.CTRL_VLAN}, buffers=32, room=room)
    assert card.command(2, 0, b"\5\0")
    for _ in range(2):
        far.send(tagged(vlan))
        far.send(frame())
        expected = [tagged(5), frame()] if vlan == 5 else [frame()]
        assert [packet.frame for packet in card.await_packets(len(expected))] == expected


def test_a_buffer_that_is_just_large_enough_for_the_filter_is_received_into(make: Make, far: socket.socket) -> None:
    """Header, addresses and tag: 30 bytes. A smaller one is filled by a copy."""
    card = make(room=30)
    with mock.patch.object(VirtioNet, "deliver", side_effect=AssertionError("copied")):
        far.send(frame(size=18))
        assert [packet.frame for packet in card.await_packets()] == [frame(size=18)]


@pytest.mark.parametrize("indirect", [False, True])
def test_a_header_with_a_piece_of_its_own_is_received_into(
    make: Make, ring: set[int], far: socket.socket, indirect: bool
) -> None:
    """As many drivers lay buffers down: 12 bytes, then the frame's. Only a filter needs more in one piece."""
    card = make(ring, buffers=0)
    queue = card.driver.queues[0]
    for _ in range(4):
        queue.add(write=[12, 1514], indirect=indirect)
    queue.kick()
    with mock.patch.object(VirtioNet, "deliver", side_effect=AssertionError("copied")):
        for number in range(4):
            far.send(frame(fill=number))
        while card.driver.guest.poll():
            pass
    one = HEADER.pack(0, 0, 0, 0, 0, 0, 1)
    assert queue.answers() == [one + frame(fill=number) for number in range(4)]


@pytest.mark.parametrize("pieces", [MOST_PIECES - 1, MOST_PIECES])
def test_a_buffer_may_have_more_pieces_than_a_system_call_takes(make: Make, far: socket.socket, pieces: int) -> None:
    card = make({Feature.INDIRECT_DESC}, buffers=0)
    queue = card.driver.queues[0]
    queue.send(write=[64, *[1] * (pieces - 1)], indirect=True)
    far.send(frame(size=500, fill=9))
    assert card.driver.guest.poll(PATIENCE)
    assert queue.answers() == [HEADER.pack(0, 0, 0, 0, 0, 0, 1) + frame(size=500, fill=9)]


def test_a_buffer_without_room_comes_back_empty(make: Make, ring: set[int], far: socket.socket) -> None:
    card = make(ring, buffers=0)
    queue = card.driver.queues[0]
    queue.add(b"only to read")
    queue.send(write=200)
    far.send(frame())
    assert card.driver.guest.poll(PATIENCE)
    assert queue.answers() == [b"", HEADER.pack(0, 0, 0, 0, 0, 0, 2) + frame()]


def test_a_card_asks_for_buffers_when_it_has_none_left(make: Make, ring: set[int], far: socket.socket) -> None:
    card = make(ring, buffers=2)
    queue = card.driver.queues[0]
    for left in (1, 0):
        assert not queue.wants_notification()
        far.send(frame())
        assert card.driver.guest.poll(PATIENCE)
        assert len(queue.answers()) == 1
        assert card.device.virtqueues[0].out == 0
        assert not lane_of(card).waits_for_turn
        assert queue.wants_notification() is (left == 0)
        assert (lane_of(card).watched is None) is (left == 0)


def test_a_packet_waits_if_the_buffers_of_earlier_ones_will_make_room(
    make: Make, ring: set[int], far: socket.socket
) -> None:
    """It needs the whole ring, of which one buffer has just been used."""
    card = make(ring, buffers=64, room=200)
    far.send(frame())
    far.send(frame(size=64 * 200 - HEADER.size, fill=7))
    assert [packet.frame for packet in card.await_packets()] == [frame()]
    card.driver.queues[0].kick()
    (packet,) = card.await_packets()
    assert (packet.frame, packet.header[-1]) == (frame(size=64 * 200 - HEADER.size, fill=7), 64)
    assert card.device.dropped == 0


def test_a_packet_that_waits_is_dropped_by_a_reset(make: Make, ring: set[int], far: socket.socket) -> None:
    card = make(ring, buffers=1)
    far.send(frame(size=9000))
    assert card.driver.guest.poll(PATIENCE)
    assert card.received() == []
    card.driver.start(card.driver.features, range(3), size=64)
    card.refill(8)
    card.driver.queues[0].kick()
    far.send(frame(fill=1))
    assert [packet.frame for packet in card.await_packets()] == [frame(fill=1)]


def test_the_next_driver_of_a_selective_card_receives_everything(make: Make, far: socket.socket) -> None:
    """§5.1.6.5.1.1: a reset turns all modes off."""
    card = make()
    assert card.command(0, 0, b"\0")
    card.driver.start(card.driver.features, range(3), size=64)
    card.refill(4)
    card.driver.queues[0].kick()
    far.send(frame(MANY))
    assert [packet.frame for packet in card.await_packets()] == [frame(MANY)]


@pytest.mark.same_device("holds a part of the card")
def test_a_turn_is_asked_for_once_and_anew_after_a_reset(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    card = make(buffers=60)
    assert card.command(0, 4, b"\1")  # no unicast: it drops every packet
    wire, timers = Wire(card, monkeypatch, 1000), card.driver.guest._timers
    for _ in range(2):
        card.driver.queues[0].kick()
    assert (len(wire.calls), len(timers)) == (512, 1)
    card.driver.start(card.driver.features, range(3), size=64)
    assert not wire.lane.waits_for_turn
    card.control = card.driver.queues[2]
    assert card.command(0, 4, b"\1")
    card.refill(1)
    card.driver.queues[0].kick()
    assert wire.lane.waits_for_turn
    card.driver.status = Status(0)
    before = len(wire.calls)
    card.driver.guest.advance()
    assert len(wire.calls) == before


def test_a_card_that_has_lost_its_buffers_takes_no_turn(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bellwire.bundled.virtio_net.device.BATCH", 64)
    card = make(buffers=64)
    wire = Wire(card, monkeypatch, 65)
    card.driver.queues[0].kick()
    assert (len(card.driver.queues[0].used()), wire.lane.waits_for_turn, wire.left) == (64, True, 1)
    card.driver.guest.advance()
    assert (wire.lane.waits_for_turn, wire.left, wire.lane.watched) == (False, 1, None)


def test_the_meter_counts_each_packet_of_a_batch(make: Make, ring: set[int], far: socket.socket) -> None:
    card = make(ring, room=100)
    queue = card.driver.queues[1]
    for size in (60, 13, 1500):
        queue.add(PLAIN, frame(size=60) if size == 60 else bytes(size))
    queue.kick()
    assert len(queue.used()) == 3
    for size in (60, 60, 150, 150):
        far.send(frame(size=size))
    card.await_packets(4)
    meter = card.device.meter.to_dict()
    assert meter["totals"] == {"receive": (4, 420), "transmit": (2, 1560)}
    assert sum(meter["latency"]) == 3
    assert 0 < meter["nanoseconds"] < 60e9
    assert card.device.dropped == 1


def test_each_header_says_one_buffer(make: Make, ring: set[int], far: socket.socket) -> None:
    """§5.1.6.4.1: whatever was in the buffer before."""
    card = make(ring, buffers=0)
    queue = card.driver.queues[0]
    for _ in range(6):
        (part,) = queue.add(write=100)
        card.driver.memory[part.address : part.address + 100] = b"\xff" * 100
    queue.kick()
    for _ in range(6):
        far.send(frame())
        assert card.driver.guest.poll(5)
    assert [HEADER.unpack_from(answer)[-1] for answer in queue.answers()] == [1] * 6


def test_a_cable_that_stays_as_it_is_changes_nothing(make: Make) -> None:
    card = make()
    card.driver.set_common(0x10, 0, 2)
    counts = []
    for up in (True, False, False, True, True):
        card.device.set_link(up)
        counts.append(card.driver.guest.interrupts[IrqIndex.MSIX, 0])
    assert counts == [0, 1, 1, 2, 2]


def test_without_a_cable_guest_memory_stays_as_it_is(make: Make, far: socket.socket) -> None:
    card = make()
    card.device.set_link(False)
    before = bytes(card.driver.memory)
    far.send(frame(fill=0xFF))
    assert card.driver.guest.poll(PATIENCE)
    assert bytes(card.driver.memory).count(b"\xff" * 40) == before.count(b"\xff" * 40)
    assert card.received() == []
    assert not card.driver.guest.poll()


def test_a_card_without_a_driver_is_not_watched(make: Make, tmp_path: Path) -> None:
    with Guest(VirtioNet, local=tmp_path / "other") as guest:
        assert guest._watched == {}
    card = make()
    assert len(card.driver.guest._watched) == 1
    for _ in range(3):
        card.driver.status = Status(0)
        assert card.driver.guest._watched == {}


def test_a_closed_card_watches_nothing_and_leaves_no_socket(make: Make, tmp_path: Path) -> None:
    card = make()
    end = lane_of(card).end
    assert (tmp_path / "near").exists()
    assert card.driver.guest._watched
    card.close()
    assert card.driver.guest._watched == {}
    assert end.fileno() == -1
    assert not (tmp_path / "near").exists()


def test_a_card_with_one_pair_and_no_mtu_says_so(make: Make) -> None:
    card = make()
    assert not card.driver.offered() & {Net.MQ, Net.MTU}
    device = card.device
    assert (device.pairs, device.mtu, device.link, device.up, device.offloads, device.listen) == (
        1, 0, True, True, True, False,
    )  # fmt: skip
    assert (device.used_pairs, device.given_up, device.dropped) == (1, 0, 0)


@pytest.mark.parametrize(("random", "first"), [(b"\xff", 0xFE), (b"\0", 0x02), (b"\1", 0x02), (b"\4", 0x06)])
def test_a_made_up_address_is_local_and_of_one_card(random: bytes, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda count: random * count)
    assert made_up_mac() == bytes([first]) + random * 5
