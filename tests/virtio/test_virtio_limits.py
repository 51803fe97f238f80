"""The last value that a virtio device takes, and the first that it does not."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_blk.request import Blk
from bellwire.bundled.virtio_net.device import BATCH
from bellwire.bundled.virtio_net.lane import Lane
from bellwire.network.features import Net
from virtio.card import ALL, PLAIN, Card
from virtio.driver import Driver
from virtio.frames import OURS, THEIRS, Make, frame

IN, OUT, DISCARD, WRITE_ZEROES = 0, 1, 11, 13
QUARTER = 256 << 10


# -- disks


@contextlib.contextmanager
def disk(**options: object) -> Iterator[Driver]:
    with Driver(VirtioBlk, memory=16 << 20, **options) as driver:
        driver.start({Blk.FLUSH, Blk.MQ} & driver.offered(), size=64)
        yield driver


@pytest.mark.parametrize("kind", [IN, OUT])
def test_a_mebibyte_is_moved_at_once_for_each_notification(kind: int) -> None:
    with disk(size=4 << 20) as driver:
        queue = driver.queues[0]
        for _ in range(2):
            for _ in range(5):
                header = struct.pack("<IIQ", kind, 0, 0)
                if kind == IN:
                    queue.add(header, write=[QUARTER, 1])
                else:
                    queue.add(header, bytes(QUARTER), write=1)
            queue.kick()
            assert len(queue.used()) == 4
            driver.guest.advance()
            assert len(queue.used()) == 1


@pytest.mark.parametrize(("size", "at_once"), [(1 << 20, True), ((1 << 20) + 512, False)])
@pytest.mark.parametrize("kind", [IN, OUT])
def test_a_request_of_a_mebibyte_is_the_largest_that_is_done_at_once(kind: int, size: int, at_once: bool) -> None:
    with disk(size=4 << 20) as driver:
        device, data = driver.device, [memoryview(bytearray(size))]
        assert isinstance(device, VirtioBlk)
        device.budget = 1 << 20
        chain = SimpleNamespace(room=size + 1)
        request: Any = SimpleNamespace(sector=0, room=data, chain=chain, data=data, data_size=size)
        job = device.read(request) if kind == IN else device.write(request)
        assert ((job is None), device.budget) == ((True, 0) if at_once else (False, 1 << 20))


@pytest.mark.parametrize(("queues", "offered"), [(1, False), (2, True)])
def test_several_queues_are_offered_if_there_are_some(queues: int, offered: bool) -> None:
    with Driver(VirtioBlk, size=1 << 20, queues=queues) as driver:
        assert (Blk.MQ in driver.offered()) is offered


@pytest.mark.parametrize("readonly", [False, True])
def test_a_disk_of_memory_that_is_read_only_keeps_what_it_has(readonly: bool) -> None:
    with disk(size=1 << 20, readonly=readonly) as driver:
        device = driver.device
        assert isinstance(device, VirtioBlk)
        device.disk.write([bytearray(b"x" * 4096)], 0)
        queue = driver.queues[0]
        results = []
        for kind, data in ((OUT, bytes(512)), (DISCARD, struct.pack("<QII", 1, 1, 0)),
                           (WRITE_ZEROES, struct.pack("<QII", 2, 1, 0))):  # fmt: skip
            queue.send(struct.pack("<IIQ", kind, 0, 0), data, write=1)
            driver.guest.advance()
            results += queue.answers()
        kept = bytearray(1536)
        device.disk.read([kept], 0)
        assert results == [b"\1" if readonly else b"\0"] * 3
        assert kept == (b"x" if readonly else b"\0") * 1536
        assert Blk.RO in driver.offered() if readonly else Blk.DISCARD in driver.offered()


# -- cards


@pytest.mark.parametrize(("size", "sent"), [(13, False), (14, True), (65550, True), (65551, False)])
def test_a_frame_has_a_header_of_its_own_and_at_most_64_kib(
    make: Make, far: socket.socket, size: int, sent: bool
) -> None:
    card = make()
    queue = card.driver.queues[1]
    queue.send(PLAIN, bytes(size))
    assert len(queue.used()) == 1
    assert card.device.dropped == (not sent)
    if sent:
        assert len(far.recv(1 << 17)) == size


def test_dropped_frames_are_counted_one_by_one(make: Make, far: socket.socket) -> None:
    card = make(buffers=1, room=100)
    for _ in range(3):
        card.send(bytes(3))
    assert card.device.dropped == 3
    card.device.set_link(False)
    card.send(frame())
    assert card.device.dropped == 4


def test_a_batch_is_256_packets_then_others_have_their_turn(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert BATCH == 256
    card = make(buffers=16)
    assert card.command(0, 4, b"\1")  # no unicast: it drops every one of these
    lane: Lane = card.device.lanes[0]
    received: list[int] = []

    def receive(buffer: memoryview) -> int:
        received.append(1)
        packet = PLAIN + frame()
        buffer[: len(packet)] = packet
        return len(packet) if len(received) <= 300 else 0

    monkeypatch.setattr(lane.end, "receive", receive)
    card.device.receive(lane)
    assert (len(received), lane.waits_for_turn) == (256, True)
    card.driver.guest.advance()
    assert (len(received), lane.waits_for_turn) == (301, False)


COMMANDS = [
    (0, 0, b"\1", True), (0, 5, b"\0", True), (0, 6, b"\0", False), (0, 0, b"", False), (0, 0, b"\0\0", False),
    (1, 1, OURS, True), (1, 1, OURS[:5], False), (1, 1, OURS + b"\0", False), (1, 1, b"\1" + OURS[1:], False),
    (1, 2, OURS, False),
    (1, 0, struct.pack("<II", 0, 0), True), (1, 0, struct.pack("<I", 0), False),
    (1, 0, struct.pack("<I", 1) + OURS + struct.pack("<I", 0), True),
    (1, 0, struct.pack("<I", 1) + OURS[:5] + struct.pack("<I", 0), False),
    (1, 0, struct.pack("<I", 2) + OURS + struct.pack("<I", 0), False),
    (1, 0, struct.pack("<II", 0, 1) + THEIRS, True), (1, 0, struct.pack("<II", 0, 0) + b"\0", False),
    (2, 0, b"\xff\x0f", True), (2, 1, b"\xff\x0f", True), (2, 2, b"\xff\x0f", False), (2, 0, b"\x00\x10", False),
    (2, 0, b"\0", False), (2, 0, b"\0\0\0", False),
    (4, 0, b"\1\0", True), (4, 0, b"\0\0", False), (4, 0, b"\2\0", False), (4, 1, b"\1\0", False),
    (4, 0, b"\1", False),
    (5, 0, bytes(8), True), (5, 1, bytes(8), False), (5, 0, bytes(7), False), (5, 0, struct.pack("<Q", 2), False),
    (3, 0, b"\0", False), (6, 0, b"\0", False),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "number", "data", "taken"), COMMANDS)
def test_a_command_is_taken_if_each_of_its_values_can_be(
    make: Make, kind: int, number: int, data: bytes, taken: bool
) -> None:
    card: Card = make(features=ALL | {Net.CTRL_VLAN})
    assert card.command(kind, number, data) is taken


@pytest.mark.parametrize(("size", "answered"), [(1, b"\1"), (2, b"\1"), (3, b"\0")])
def test_a_command_has_at_least_two_bytes(make: Make, size: int, answered: bytes) -> None:
    card: Card = make()
    card.control.send(b"\0\0\1"[:size], write=1)
    assert card.control.answers() == [answered]


def test_the_first_command_of_a_kind_turns_promiscuity_on_and_the_others_off(make: Make) -> None:
    card: Card = make()
    modes = []
    for number in range(6):
        for data in (b"\0", b"\1"):
            card.command(0, number, data)
            modes.append(card.device.filter._modes)
        card.command(0, number, b"\1" if number == 0 else b"\0")
    assert modes == [1, 0, 0, 2, 0, 4, 0, 8, 0, 16, 0, 32]


def test_a_restored_card_without_a_driver_is_not_watched(make: Make) -> None:
    card: Card = make()
    lane: Any = card.device.lanes[0]
    assert lane.watched is not None
    running = card.driver.guest.snapshot()
    card.driver.status = type(card.driver.status)(0)
    idle = card.driver.guest.snapshot()
    card.driver.guest.restore(running)
    assert lane.watched in card.driver.guest._watched
    card.driver.guest.restore(idle)
    assert lane.watched is None
    assert lane.end.fileno() not in card.driver.guest._watched
