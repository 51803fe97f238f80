"""Buffers that are out when a process is killed: done again by the successor, and returned exactly once."""

from __future__ import annotations

import itertools
from collections import Counter
from types import CodeType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire.virtio import Chain, Feature, VirtioDevice, Virtqueue
from bellwire.virtio.chain import Row
from bellwire.virtio.virtqueue import Ring
from killing import Remains, killed, succeed
from virtio.driver import Driver
from virtio.rings import Queue

MEMORY = 1 << 18
SIZE = 8
KINDS = [set(), {Feature.EVENT_IDX}, {Feature.RING_PACKED}, {Feature.RING_PACKED, Feature.EVENT_IDX}]


class Juggler(VirtioDevice, kind=62, queues=1, queue_size=SIZE, class_code=0xFF0000):
    """Returns what it gets, backwards. What begins with ``later`` it keeps; ``drop`` returns the youngest one first.

    What begins with ``now`` and has a number in a piece of its own is a row.
    """

    def setup(self) -> None:
        self.kept: list[Chain] = []
        self.rows = 0

    def stopped(self) -> None:
        self.kept.clear()

    def notified(self, queue: Virtqueue) -> None:
        for chains in queue.batches(self.at_once):
            if len(chains) > 5:
                queue.back(chains[5:])
                del chains[5:]
            done = []
            for chain in chains:
                data = chain.read()
                if data.startswith(b"later"):
                    self.kept.append(chain)
                else:
                    chain.write(data[::-1])
                    done.append(chain)
            queue.finish(done)
        self.after(1, self.drop)

    def at_once(self, queue: Virtqueue, ring: Ring, most: int) -> int:
        rows = ring.rows(min(most, 2), len(b"now"), len(b"now") + 6)
        for _, _, head, data, size, writes, tail in rows:
            assert (size, writes) == (6, False)
            self.dma.write(tail, (self.dma.read(head, 3) + self.dma.read(data, size))[::-1])
        if rows:
            ring.take_rows(rows)
            queue.put_rows(rows, [9] * len(rows), 18 * len(rows))
            self.rows += len(rows)
        return len(rows)

    def drop(self, most: int = 2) -> None:
        for _ in range(min(most, len(self.kept))):
            chain = self.kept.pop()
            chain.write(chain.read()[::-1])
            chain.done()
        self.virtqueues[0].flush()
        if self.kept:
            self.after(1, self.drop)


class Hoarder(Juggler, kind=62, queues=1, queue_size=SIZE, class_code=0xFF0000):
    """Keeps the rows with an odd number, as a disk keeps writes, and returns them later: the youngest two first."""

    def setup(self) -> None:
        super().setup()
        self.hoard: list[Row] = []

    def stopped(self) -> None:
        super().stopped()
        self.hoard.clear()

    def at_once(self, queue: Virtqueue, ring: Ring, most: int) -> int:
        rows = ring.rows(min(most, 4), len(b"now"), len(b"now") + 6)
        odd = [row for row in rows if int(self.dma.read(row[3], 6)) % 2]
        ring.take_rows(rows)
        self.give_back(queue, [row for row in rows if row not in odd])
        self.hoard += odd
        return len(rows)

    def give_back(self, queue: Virtqueue, rows: list[Row]) -> None:
        for _, _, head, data, size, _, tail in rows:
            self.dma.write(tail, (self.dma.read(head, 3) + self.dma.read(data, size))[::-1])
        if rows:
            queue.put_rows(rows, [9] * len(rows), 18 * len(rows))
            self.rows += len(rows)

    def drop(self, most: int = 2) -> None:
        self.give_back(self.virtqueues[0], self.hoard[-2:])
        del self.hoard[-2:]
        super().drop(most)
        if self.hoard:
            self.after(1, self.drop)


def returns_buffers(code: CodeType) -> bool:
    """Whether a function stores what is taken and returned. Between these stores, nothing changes."""
    return code.co_filename.endswith(("split.py", "packed.py", "inflight.py")) and not code.co_name.startswith("_walk")


class Session:
    """A driver that checks each answer, and goes on with the successor of a device that is killed."""

    def __init__(self, features: set[int], kind: type[Juggler] = Juggler) -> None:
        self.kind = kind
        self.driver = Driver(kind, memory=MEMORY)
        self.driver.start(features | {Feature.INDIRECT_DESC}, size=SIZE)
        self.queue: Queue = self.driver.queues[0]
        self.numbers = itertools.count()
        self.waits: Counter[bytes] = Counter()
        self.room = SIZE

    def add(self, later: bool, parts: int, indirect: bool) -> None:
        """Make a buffer available, if there is room for it."""
        slots = 1 if indirect else parts + 1
        if slots > self.room:
            return
        self.room -= slots
        data = [b"later" if later else b"now", f"{next(self.numbers):6}".encode()] + [b"x"] * (parts - 2)
        parts_of = [data[0] + data[1]] if parts == 1 else data
        whole = b"".join(parts_of)
        self.queue.add(*parts_of, write=len(whole), indirect=indirect)
        self.waits[whole[::-1]] += 1
        self.driver._free = self.driver._free if self.driver._free < MEMORY - 4096 else 0x8000

    def collect(self) -> None:
        """Take back what has been returned: nothing that was not asked for, and nothing twice."""
        for used in self.queue.used():
            answer = self.queue.content(used)
            assert self.waits[answer] == 1, f"{answer!r} was not asked for"
            del self.waits[answer]
        slots = self.queue.held.values()
        self.room = SIZE - sum(span for _, span in slots) if slots else SIZE

    def go_on(self, left: Remains) -> None:
        """A successor has taken over, and has the doorbell rung again."""
        self.driver.guest.close()
        guest = self.driver.guest = succeed(left, self.kind)
        self.driver.device, self.driver.memory = guest.device, guest.memory
        self.queue.memory = guest.memory
        interrupts = sum(guest.interrupts.values())
        assert interrupts, "the driver may wait for an interrupt that was lost"

    def end(self) -> None:
        """Everything comes back in the end."""
        self.queue.kick()
        for _ in range(SIZE):
            self.driver.guest.advance(1)
        self.collect()
        assert not self.waits
        queue = self.driver.device.virtqueues[0]
        assert queue.out == 0
        self.driver.close()


ADD = st.tuples(st.booleans(), st.integers(1, 3), st.booleans())
OPS = st.lists(st.lists(ADD, max_size=8) | st.just("time") | st.just("collect"), min_size=1, max_size=12)


def play(features: set[int], ops: list[Any], kills: list[tuple[int, int]], kind: type[Juggler] = Juggler) -> int:
    """Play a session, and kill the device in some of the operations, at some step. How often that has happened."""
    session, done = Session(features, kind), 0
    at = dict(kills)
    for number, op in enumerate(ops):
        if op == "collect":
            session.collect()
            continue
        if op == "time":
            action: Any = lambda: session.driver.guest.advance(1)  # noqa: E731
        else:
            for each in op:
                session.add(*each)
            action = session.queue.kick
        left = killed(session.driver.guest, at[number], action, returns_buffers) if number in at else action()
        if left is not None:
            session.go_on(left)
            done += 1
    session.end()
    return done


@settings(max_examples=40)
@given(st.sampled_from(KINDS), OPS, st.lists(st.tuples(st.integers(0, 11), st.integers(0, 60)), max_size=4))
def test_each_buffer_comes_back_once_wherever_the_device_is_killed(
    features: set[int], ops: list[Any], kills: list[tuple[int, int]]
) -> None:
    play(features, ops, kills)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Juggler, Hoarder])
@pytest.mark.parametrize("features", [KINDS[1], KINDS[3]])
def test_each_buffer_comes_back_once_at_every_step(features: set[int], kind: type[Juggler]) -> None:
    """A session with buffers that stay out while others come and go, killed at each step that stores something."""
    later, now, row = (True, 2, False), (False, 1, False), (False, 2, True)
    ops: list[Any] = [[later, row, now], "collect", [row, row, (True, 1, True), now], "time", "collect", [now, row] * 3]
    for number in (0, 2, 3, 5):
        steps = 0
        while play(features, ops, [(number, steps)], kind):
            steps += 1
        assert steps > 10, "nothing was done there"


@pytest.mark.unsaved("counts how the device works off its buffers, and a restore begins that again")
@pytest.mark.parametrize("features", KINDS)
def test_rows_are_done_while_other_buffers_stay_out(features: set[int]) -> None:
    session = Session(features)
    for later, parts, indirect in [(True, 1, True), (False, 2, True), (False, 2, False)]:
        session.add(later, parts, indirect)
        session.queue.kick()
    juggler = session.driver.device
    assert isinstance(juggler, Juggler)
    assert juggler.rows == 2
    session.collect()
    assert len(session.waits) == 1
    session.end()


@settings(max_examples=10)
@given(st.sampled_from(KINDS), st.integers(0, 3))
def test_a_log_that_is_full_is_written_anew(features: set[int], stay: int) -> None:
    """A buffer stays out while many times as many as the ring has come and go."""
    ops: list[Any] = [[(True, 1, False)] * 3]
    for _ in range(3 * SIZE):
        ops += [[(False, 1, False)] * 2, "collect"]
    assert play(features, ops, [(len(ops) - 2, 5 + 5 * stay), (5, 12)])
