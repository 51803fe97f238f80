"""Buffers of one piece, which a card uses many at a time: a driver sees what it would see if each were a chain."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire import GuestError
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.network.features import Net
from bellwire.network.sockets import DatagramLink
from bellwire.virtio import Chain, Feature, Virtqueue, faults
from bellwire.virtio.chain import MOST_BYTES
from vfio_user import IrqIndex
from virtio.card import ALL, PLAIN
from virtio.conftest import FORMATS, KINDS
from virtio.driver import Driver
from virtio.frames import MANY, Make, frame
from virtio.rings import NEXT, WRITE, PackedQueue, Queue, SplitQueue

RINGS = FORMATS
MEMORY = 8 << 20
FAR = 1 << 40
SIZE = 16
NO_CHAINS = mock.patch("bellwire.virtio.chain.Chain", side_effect=AssertionError("a chain"))


def raw(queue: Queue, address: int, length: int, flags: int) -> None:
    """Make one descriptor available, whatever it says."""
    if isinstance(queue, PackedQueue):
        queue.write_chain(queue.next_id, [(address, length, flags)])
        queue.held[queue.next_id] = ([], 1)
        queue.next_id += 1
    elif isinstance(queue, SplitQueue):
        slot = queue.free.pop(0)
        queue.describe(slot, address, length, flags, 0)
        queue.offer(slot)
        queue.slots[slot], queue.held[slot] = [slot], ([], 1)


def room(queue: Queue, chance: random.Random) -> None:
    """A buffer to receive into: most often of one piece, and of the usual size."""
    rooms = chance.choice([[300]] * 6 + [[12, 288], [301], [1600], [11], [200, 100]])
    queue.add(write=rooms, indirect=chance.random() < 0.1)


def packet(queue: Queue, chance: random.Random, fill: int) -> None:
    """A packet to send: most often in one piece, and of a size that a packet can have."""
    data = PLAIN + frame(size=chance.choice([60, 60, 60, 200, 1, 1500]), fill=fill)
    cut = chance.choice([len(data)] * 4 + [12, 30])
    queue.add(*filter(None, [data[:cut], data[cut:]]), indirect=chance.random() < 0.1)


class Outcome:
    """What is left behind of a script: a list of how many buffers, packets in and packets out there are, and what for.

    ``kind`` is the ring's, ``chains`` whether each buffer is to be a chain.
    """

    def __init__(self, far: socket.socket, near: Path, kind: set[int], merged: bool, *, chains: bool) -> None:
        self.far = far
        self.batches = 0
        usual = Virtqueue.whole

        def whole_or_none(queue: Virtqueue, most: int, *, write: bool) -> object:
            whole = None if chains else usual(queue, most, write=write)
            self.batches += whole is not None
            return whole

        self.stack = contextlib.ExitStack()
        self.stack.enter_context(mock.patch.object(Virtqueue, "whole", whole_or_none))
        self.driver = self.stack.enter_context(
            Driver(VirtioNet, memory=MEMORY, local=near, dgram=Path(far.getsockname()), mac="52:54:00:12:34:56")
        )
        features = ALL if merged else ALL - {Net.MRG_RXBUF}
        self.driver.start(kind | features | {Feature.INDIRECT_DESC}, range(3), size=SIZE)
        self.rings_end = self.driver.allocate(1)
        far.connect(os.fspath(near))

    def step(self, rooms: int, into: int, out: int, bad: int, chance: random.Random) -> list[object]:
        """One turn of the script: what came of it."""
        receive, transmit, guest = self.driver.queues[0], self.driver.queues[1], self.driver.guest
        with contextlib.suppress(BlockingIOError):  # the socket is full while the card has no buffers
            for number in range(into):
                self.far.send(frame(size=chance.choice([60, 60, 60, 100, 288, 289, 700, 1500]), fill=number))
        for queue, count in ((receive, rooms), (transmit, out)):
            for number in range(count):
                if sum(slots for _, slots in queue.held.values()) > SIZE - 4:
                    break
                if chance.randrange(100) < bad:
                    raw(queue, chance.choice([FAR, MEMORY - 20]), chance.choice([0, 60, MOST_BYTES + 1]), 0)
                elif queue is receive:
                    room(queue, chance)
                else:
                    packet(queue, chance, number)
        try:
            for queue in (receive, transmit):
                queue.kick()
            while guest.poll():
                pass
            guest.advance()
        except GuestError as error:
            return [str(error)]
        sent = []
        with contextlib.suppress(BlockingIOError):
            while True:
                sent.append(self.far.recv(1 << 16))
        seen = [[(one.parts, one.written, queue.content(one)) for one in queue.used()] for queue in (receive, transmit)]
        wants = [queue.wants_notification() for queue in (receive, transmit)]
        for queue in (receive, transmit):
            if queue.event_idx:
                queue.interrupt_after(1)
        return [sent, seen, wants]

    def rest(self) -> list[object]:
        """What is left at the end."""
        device = self.driver.device
        assert isinstance(device, VirtioNet)
        positions = [(queue.next, queue.used, queue.out, queue.next_wrap) for queue in device.virtqueues]
        counts = device.dropped, device.moved, device.dma.counts["dma_in_place"]
        return [
            bytes(self.driver.memory[: self.rings_end]),
            self.driver.guest.interrupts,
            self.driver.status,
            positions,
            counts,
        ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@settings(max_examples=30, deadline=None)
@given(
    script=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12),
    merged=st.booleans(),
    bad=st.sampled_from([0, 0, 3]),
    seed=st.integers(0, 1 << 32),
)
def test_the_outcome_is_that_of_chains(
    tmp_path_factory: pytest.TempPathFactory,
    kind: set[int],
    script: list[tuple[int, int, int]],
    merged: bool,
    bad: int,
    seed: int,
) -> None:
    found = []
    for chains in (False, True):
        folder, chance = tmp_path_factory.mktemp("net"), random.Random(seed)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
            far.bind(os.fspath(folder / "far"))
            far.setblocking(False)
            outcome = Outcome(far, folder / "near", kind, merged, chains=chains)
            with outcome.stack:
                steps: list[object] = []
                for rooms, into, out in script:
                    steps.append(outcome.step(rooms, into, out, bad, chance))
                    if len(steps[-1]) == 1:  # type: ignore[arg-type]
                        break
                found.append([*steps, outcome.rest()])
            assert not (chains and outcome.batches)
    assert found[0] == found[1]


def test_packets_in_buffers_of_one_piece_make_no_chains(make: Make, ring: set[int], far: socket.socket) -> None:
    """Once the map is known that buffers are in."""
    card = make(ring, buffers=20)
    far.send(frame())
    assert len(card.await_packets()) == 1
    card.driver.queues[1].send(PLAIN + frame())
    card.driver.queues[1].used()
    far.recv(100)
    with NO_CHAINS:
        for number in range(8):
            far.send(frame(fill=number))
            card.driver.queues[1].add(PLAIN + frame(fill=number))
        assert [packet.frame for packet in card.await_packets(8)] == [frame(fill=number) for number in range(8)]
        card.driver.queues[1].kick()
        assert [far.recv(100) for _ in range(8)] == [frame(fill=number) for number in range(8)]
    assert len(card.driver.queues[1].used()) == 8


def queue_that_knows_its_map(driver: Driver, ring: set[int]) -> tuple[Queue, Virtqueue]:
    """The receive queue of a card that has used a buffer."""
    driver.start(ring, range(3), size=SIZE)
    queue, ours = driver.queues[0], driver.device.virtqueues[0]
    queue.add(write=100)
    queue.add(b"to read")
    for chain in ours.take(2):
        chain.done(0)
    ours.flush()
    queue.used()
    return queue, ours


@pytest.mark.parametrize(
    ("address", "length", "flags"),
    [
        (4096, 100, 0),
        (4096, 0, WRITE),
        (4096, 100, WRITE | NEXT),
        (4096, 16, WRITE | 4),
        (MEMORY - 99, 100, WRITE),
        (FAR, 100, WRITE),
        ((1 << 64) - 50, 100, WRITE),
        (0, MOST_BYTES + 1, WRITE),
        (0, 0xFFFF_FFFF, WRITE),
    ],
)
def test_a_batch_ends_before_a_buffer_that_is_not_of_its_kind(
    tmp_path: Path, ring: set[int], address: int, length: int, flags: int
) -> None:
    with Driver(VirtioNet, memory=MEMORY, local=tmp_path / "near") as driver:
        queue, ours = queue_that_knows_its_map(driver, ring)
        for _ in range(3):
            queue.add(write=100)
        raw(queue, address, length, flags)
        queue.add(write=100)
        whole = ours.whole(64, write=True)
        assert whole is not None
        assert whole.sizes == [100] * 3
        assert len(whole.starts) == 3
        ours.put_whole(whole, [7], 7)
        assert [used.written for used in queue.used()] == [7]
        assert ours.out == 0
        again = ours.whole(64, write=True)
        assert again is not None
        assert (again.ids[:2], again.sizes) == (whole.ids[1:3], [100] * 2)
        ours.put_whole(again, [8, 9], 17)
        assert [used.written for used in queue.used()] == [8, 9]
        assert ours.whole(64, write=True) is None


def test_a_head_outside_the_table_ends_a_batch(tmp_path: Path) -> None:
    with Driver(VirtioNet, memory=MEMORY, local=tmp_path / "near") as driver:
        queue, ours = queue_that_knows_its_map(driver, set())
        assert isinstance(queue, SplitQueue)
        queue.add(write=100)
        queue.offer(SIZE)
        whole = ours.whole(64, write=True)
        assert whole is not None
        assert len(whole.starts) == 1
        ours.put_whole(whole, [1], 1)
        assert ours.whole(64, write=True) is None
        with pytest.raises(GuestError, match=f"descriptor {SIZE} of {SIZE}"):
            ours.take(64)


def test_more_buffers_than_the_ring_has_are_no_batch(tmp_path: Path) -> None:
    with Driver(VirtioNet, memory=MEMORY, local=tmp_path / "near") as driver:
        queue, ours = queue_that_knows_its_map(driver, set())
        assert isinstance(queue, SplitQueue)
        queue.set_word(queue.avail + 2, ours.next + SIZE + 1)
        assert ours.whole(64, write=True) is None
        with pytest.raises(GuestError, match="17 buffers available in a ring of 16"):
            ours.take(64)


def test_no_more_buffers_are_taken_than_the_ring_has(tmp_path: Path, ring: set[int]) -> None:
    """The driver may offer buffers anew that are still out."""
    with Driver(VirtioNet, memory=MEMORY, local=tmp_path / "near") as driver:
        queue, ours = queue_that_knows_its_map(driver, ring)

        def offer() -> None:
            if isinstance(queue, SplitQueue):
                queue.describe(0, 4096, 100, WRITE, 0)
                queue.offer(0)
            else:
                raw(queue, 4096, 100, WRITE)

        for _ in range(SIZE - 2):
            offer()
            assert len(ours.take()) == 1
        for _ in range(4):
            offer()
        whole = ours.whole(64, write=True)
        assert whole is not None
        assert len(whole.starts) == 2


def test_the_positions_go_round(tmp_path: Path, ring: set[int]) -> None:
    """Past the end of the ring, and past 2^16."""
    with Driver(VirtioNet, memory=MEMORY, local=tmp_path / "near") as driver:
        queue, ours = queue_that_knows_its_map(driver, ring)
        if isinstance(queue, SplitQueue):
            queue.available = queue.seen = ours.next = ours.used = 0xFFF0
            queue.set_word(queue.avail + 2, 0xFFF0)
            queue.set_word(queue.ring + 2, 0xFFF0)
        place = driver.allocate(100)
        for turn in range(12):
            for _ in range(5):
                raw(queue, place, 100, WRITE)
            left = 5
            while left:
                whole = ours.whole(64, write=True)
                assert whole is not None
                left -= len(whole.starts)
                ours.put_whole(whole, [turn + 1] * len(whole.starts), 0)
            assert [used.written for used in queue.used()] == [turn + 1] * 5


def test_packets_share_an_interrupt_however_they_are_taken(make: Make, ring: set[int], far: socket.socket) -> None:
    card = make(ring, buffers=8)
    far.send(frame())
    assert len(card.await_packets()) == 1
    before = card.driver.guest.interrupts[IrqIndex.MSIX, 1]
    if card.driver.queues[0].event_idx:
        card.driver.queues[0].interrupt_after(1)
    for number in range(6):
        far.send(frame(fill=number))
    assert len(card.await_packets(6)) == 6
    assert card.driver.guest.interrupts[IrqIndex.MSIX, 1] == before + 1


def test_one_packet_takes_two_buffers_and_puts_one_back(make: Make, ring: set[int], far: socket.socket) -> None:
    """Not all 64 that the driver has made available: that would cost more than the packet."""
    card = make(ring, buffers=60)
    taken = []
    usual = Virtqueue.whole

    def whole_or_none(queue: Virtqueue, most: int, *, write: bool) -> object:
        whole = usual(queue, most, write=write)
        taken.append(len(whole.starts) if whole else 0)
        return whole

    far.send(frame())
    assert len(card.await_packets()) == 1
    with mock.patch.object(Virtqueue, "whole", whole_or_none):
        for _ in range(3):
            far.send(frame())
            assert len(card.await_packets()) == 1
    assert taken == [2, 2, 2]


def test_one_packet_makes_two_chains_if_its_buffer_has_pieces(make: Make, ring: set[int], far: socket.socket) -> None:
    card = make(ring, buffers=0)
    queue, usual, taken = card.driver.queues[0], Virtqueue.take, []
    for _ in range(20):
        queue.add(write=[12, 1514])
    queue.kick()

    def take(queue: Virtqueue, most: int = 1) -> list[Chain]:
        chains = usual(queue, most)
        taken.append(len(chains))
        return chains

    far.send(frame())
    assert card.driver.guest.poll(5)
    with mock.patch.object(Virtqueue, "take", take):
        for _ in range(3):
            far.send(frame())
            assert card.driver.guest.poll(5)
    assert taken == [2, 2, 2]
    assert len(queue.used()) == 4


def test_a_card_that_chooses_its_packets_looks_at_each(make: Make, ring: set[int], far: socket.socket) -> None:
    card = make(ring)
    far.send(frame())
    assert len(card.await_packets()) == 1
    assert card.command(0, 3, b"\1")  # no multicast
    for number in range(3):
        far.send(frame(MANY))
        far.send(frame(fill=number))
    assert [packet.frame for packet in card.await_packets(3)] == [frame(fill=number) for number in range(3)]


def test_a_fault_sees_each_buffer_of_a_card(make: Make, ring: set[int], far: socket.socket) -> None:
    card = make(ring)
    far.send(frame())
    assert len(card.await_packets()) == 1
    card.driver.guest.filters.add(faults.LostUsed(every=2))
    for number in range(4):
        far.send(frame(fill=number))
    while card.driver.guest.poll():
        pass
    assert [packet.frame[-1] for packet in card.received()] == [0, 2]


def test_a_packet_that_is_refused_in_a_batch_is_counted_once(make: Make, ring: set[int], far: socket.socket) -> None:
    card = make(ring)
    queue = card.driver.queues[1]
    queue.send(PLAIN + frame())
    for size in (25, 26, 200, 300):
        queue.add(bytes(size))
    with mock.patch.object(DatagramLink, "send", lambda _, packet: len(packet[0]) != 200):
        queue.kick()
    assert len(queue.used()) == 5
    assert (card.device.dropped, card.device.moved[2:]) == (2, [3, len(PLAIN + frame()) + 26 + 300])


def test_a_packet_in_a_batch_may_exceed_its_buffer(make: Make, ring: set[int], far: socket.socket) -> None:
    card = make(ring, buffers=12, room=100)
    far.send(frame())
    assert len(card.await_packets()) == 1
    sent = [frame(fill=1), frame(size=500, fill=2), frame(fill=3), frame(fill=4)]
    for one in sent:
        far.send(one)
    packets = card.await_packets(4)
    assert [packet.frame for packet in packets] == sent
    assert [packet.header[-1] for packet in packets] == [1, 6, 1, 1]


def test_after_a_turn_of_small_packets_each_has_one_buffer_again(
    make: Make, ring: set[int], far: socket.socket
) -> None:
    """One large packet does not keep all later ones out of batches."""
    card = make(ring, buffers=20, room=100)
    lane = card.device.lanes[0]
    seen = []
    for sizes in ([60], [250], [60, 250], [60], [60]):
        for size in sizes:
            far.send(frame(size=size))
        assert len(card.await_packets(len(sizes))) == len(sizes)
        seen.append(lane.buffers)
    assert seen == [1, 3, 3, 1, 1]
    with NO_CHAINS:
        far.send(frame())
        assert len(card.await_packets()) == 1


def test_chains_that_were_finished_before_go_back_before(make: Make, ring: set[int]) -> None:
    card = make(ring, buffers=0)
    queue, ours = card.driver.queues[0], card.device.virtqueues[0]
    queue.add(write=50)
    ours.take()[0].done(1)
    ours.flush()
    queue.used()
    for size in (51, 52):
        queue.add(write=size)
    ours.take()[0].done(2)
    whole = ours.whole(8, write=True)
    assert whole is not None
    ours.put_whole(whole, [3], 3)
    ours.flush()
    assert [(used.parts[0].length, used.written) for used in queue.used()] == [(51, 2), (52, 3)]
