"""Buffers are taken many at a time: a driver sees what it would see if they were taken one by one."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire import GuestError
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.network.features import Net
from bellwire.storage import MemoryDisk
from bellwire.virtio import Feature
from virtio.card import ALL, Card, Packet
from virtio.conftest import KINDS
from virtio.driver import Driver
from virtio.echo import Echo
from virtio.frames import frame
from virtio.rings import INDIRECT, NEXT, WRITE, PackedQueue, Queue, SplitQueue

pytestmark = pytest.mark.slow

MEMORY = 1 << 20
FAR = 1 << 40
IN, OUT, FLUSH, GET_ID, DISCARD, NONE = 0, 1, 4, 8, 11, 99
Bad = Callable[[Queue], None] | None


def wrong(queue: Queue) -> None:
    """A buffer outside guest memory."""
    if isinstance(queue, PackedQueue):
        queue.write_chain(queue.next_id, [(FAR, 4, 0)])
    elif isinstance(queue, SplitQueue):
        slot = queue.free.pop()
        queue.describe(slot, FAR, 4, 0, 0)
        queue.offer(slot)


def headless(queue: Queue) -> None:
    """A request whose header is too short."""
    queue.add(b"short", write=1)


def answerless(queue: Queue) -> None:
    """A request without room for the status."""
    queue.add(bytes(16), bytes(512))


BAD = st.sampled_from([None] * 5 + [wrong, headless, answerless])
"""What a driver does wrong, if it does."""


def request(queue: Queue, chance: random.Random, sector: int | None = None) -> None:
    """A request of any kind to a disk, well made or not. At this sector, it keeps to eight of them."""
    kind = chance.choice([IN, IN, IN, OUT, OUT, FLUSH, GET_ID, DISCARD, NONE])
    header = struct.pack("<IIQ", kind, 0, chance.randrange(130) if sector is None else sector)
    size = chance.choice([0, 511, 512, 1024, 4096])
    data = chance.randbytes(size) if kind == OUT else b""
    if kind == DISCARD:
        first, count = (chance.randrange(120), chance.randrange(20)) if sector is None else (sector, 8)
        data = struct.pack("<QII", first, count, chance.choice([0, 0, 1]))
    cut = chance.choice([16, 16, 16, 3, 16 + len(data)])
    rooms = [size, 1] if kind == IN else [1]
    queue.add(
        *filter(None, [(header + data)[:cut], (header + data)[cut:]]), write=rooms, indirect=chance.random() < 0.3
    )


def outcome(kind: set[int], script: list[tuple[int, Bad]], seed: int, most: int, *, fast: bool) -> list[object]:
    """All that is left behind: guest memory, the disk, interrupts, errors, the status."""
    chance = random.Random(seed)
    seen: list[object] = []
    with (
        mock.patch("bellwire.virtio.virtqueue.BATCH", most),
        Driver(VirtioBlk, memory=MEMORY, size=64 << 10) as driver,
    ):
        driver.start(kind | {Feature.INDIRECT_DESC, 9, 13}, size=64)
        (queue,) = driver.queues.values()
        assert isinstance(driver.device, VirtioBlk)
        if not fast:
            driver.device.fast = None
        for count, bad in script:
            for _ in range(count):
                request(queue, chance)
            if bad:
                bad(queue)
                request(queue, chance)
            try:
                queue.kick()
                driver.guest.advance()
            except GuestError as error:
                seen.append(str(error))
                break
            seen.append([(used.written, queue.whole(used)) for used in queue.used()])
            if queue.event_idx:
                queue.interrupt_after(1)
        assert isinstance(driver.device.disk, MemoryDisk)
        seen += [bytes(driver.memory), bytes(driver.device.disk.view), driver.guest.interrupts, driver.status]
    return seen


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@settings(max_examples=25, deadline=None)
@given(
    script=st.lists(st.tuples(st.integers(0, 12), BAD), min_size=1, max_size=6),
    seed=st.integers(0, 1 << 32),
)
def test_how_many_buffers_are_taken_at_once_makes_no_difference(
    kind: set[int], script: list[tuple[int, Bad]], seed: int
) -> None:
    slowly = outcome(kind, script, seed, 1, fast=False)
    assert outcome(kind, script, seed, 64, fast=False) == slowly
    assert outcome(kind, script, seed, 64, fast=True) == slowly
    assert outcome(kind, script, seed, 3, fast=True) == slowly


def on_image(kind: set[int], counts: list[int], bad: Bad, seed: int, image: Path, *, fast: bool) -> list[object]:
    """What the buffers have after each notification, in any order, and the image at the end. The last may end ``bad``.

    Requests that are under way at the same time lie apart: those that overlap have no order.
    """
    chance = random.Random(seed)
    image.write_bytes(random.Random(0).randbytes(64 << 10))
    seen: list[object] = []
    with Driver(VirtioBlk, memory=MEMORY, image=image) as driver:
        driver.start(kind | {Feature.INDIRECT_DESC, 9, 13}, size=64)
        queue = driver.queues[0]
        assert isinstance(driver.device, VirtioBlk)
        if not fast:
            driver.device.fast = None
        for turn, count in enumerate(counts, 1):
            for number in range(count):
                request(queue, chance, 8 * number)
            if bad and turn == len(counts):
                bad(queue)
            try:
                queue.kick()
                driver.guest.advance()
            except GuestError as error:
                seen.append(str(error))
                break
            used = queue.used()
            assert len(used) == count
            seen.append(sorted((each.written, queue.whole(each)) for each in used))
        totals = driver.device.meter.to_dict()["totals"]
    return [*seen, totals, image.read_bytes()]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@settings(max_examples=15, deadline=None)
@given(counts=st.lists(st.integers(1, 17), min_size=1, max_size=4), bad=BAD, seed=st.integers(0, 1 << 32))
def test_a_disk_on_an_image_does_the_same_on_both_paths(
    tmp_path_factory: pytest.TempPathFactory, kind: set[int], counts: list[int], bad: Bad, seed: int
) -> None:
    image = tmp_path_factory.mktemp("disk") / "image"
    fast = on_image(kind, counts, bad, seed, image, fast=True)
    assert fast == on_image(kind, counts, bad, seed, image, fast=False)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_what_a_loop_does_not_get_to_stays_available(kind: set[int]) -> None:
    with Driver(Echo) as driver:
        driver.start(kind)
        queue, ours = driver.queues[0], driver.device.virtqueues[0]
        for number in range(7):
            queue.add(b"%d" % number, write=1, indirect=number % 3 == 0)
        for number, chain in enumerate(ours):
            chain.done(0)
            if number == 3:
                break
        assert len(queue.used()) == 4
        queue.kick()
        assert queue.answers() == [b"4", b"5", b"6"]


def test_a_disk_leaves_what_exceeds_a_turn_to_the_next() -> None:
    """Data in memory is never left to a thread, which would cost more than a turn."""
    with Driver(VirtioBlk, size=4 << 20) as driver:
        driver.start({9}, size=64)
        queue = driver.queues[0]
        for number in range(20):
            queue.add(struct.pack("<IIQ", IN, 0, 256 * number), write=[128 << 10, 1])
        queue.kick()
        assert len(queue.used()) == 8
        driver.guest.advance()
        assert len(queue.used()) == 12
        assert queue.wants_notification()


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([14, 60, 188, 189, 1500, 9000]), min_size=1, max_size=8),  # a socket holds 10
    kind=st.sampled_from(sorted(KINDS)),
    room=st.sampled_from([20, 40, 200, 201, 1526, 9100]),
    merged=st.booleans(),
    seed=st.integers(0, 99),
)
def test_packets_of_any_size_arrive_whole_in_buffers_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], kind: str, room: int, merged: bool, seed: int
) -> None:
    near = tmp_path_factory.mktemp("net") / "near"
    card = Card(KINDS[kind], ALL if merged else ALL - {Net.MRG_RXBUF}, buffers=64, room=room, local=near)
    chance = random.Random(seed)
    sent = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        far.connect(str(near))
        for size in sizes:
            sent.append(frame(size=size) if size <= 60 else frame(size=60) + chance.randbytes(size - 60))
            far.send(sent[-1])
        received: list[Packet] = []
        moves = True
        while moves:
            arrived = card.driver.guest.poll()
            packets = card.received()  # their buffers are available again
            card.driver.queues[0].kick()
            received += packets
            moves = arrived or bool(packets)
        card.close()
    limit = 64 * room if merged else room
    assert [packet.frame for packet in received] == [one for one in sent if len(one) + 12 <= limit]


def test_an_indirect_table_may_follow_descriptors_of_the_ring() -> None:
    """A split chain may end in a table (§2.7.5.3.2)."""
    with Driver(Echo) as driver:
        driver.start(KINDS["split"] | {Feature.INDIRECT_DESC})
        queue = driver.queues[0]
        assert isinstance(queue, SplitQueue)
        table = driver.allocate(32)
        text, room = driver.store(b"ab"), driver.allocate(4)
        struct.pack_into("<QIHHQIHH", driver.memory, table, text + 1, 1, NEXT, 1, room, 4, WRITE, 0)
        queue.describe(0, text, 1, NEXT, 1)
        queue.describe(1, table, 32, INDIRECT, 0)
        queue.offer(0)
        queue.kick()
        assert bytes(driver.memory[room : room + 2]) == b"ba"
