"""Rows: buffers of three descriptors side by side. A ring sees one only where the general walk sees the same."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire import GuestError
from bellwire.virtio import Feature
from bellwire.virtio.chain import DESCRIPTOR
from virtio.conftest import KINDS
from virtio.driver import Driver
from virtio.echo import Echo
from virtio.rings import INDIRECT, NEXT, WRITE, PackedQueue, Queue, SplitQueue

pytestmark = pytest.mark.slow

SIZE = 16
HEAD, TAIL = 16, 1
FAR = 1 << 40
ADDRESS, LENGTH, FLAGS, FOLLOWING = range(4)
CHANGES = [
    *[(FLAGS, number, flag) for number in range(3) for flag in (NEXT, WRITE, INDIRECT)],
    *[(FOLLOWING, number, place) for number in range(3) for place in (0, 1, SIZE)],
    *[(LENGTH, number, length) for number in range(3) for length in (0, 1, 17, 100)],
    *[(ADDRESS, number, 1) for number in range(3)],
]
"""What is not as in a row: a field of one of the descriptors. Flags are inverted, an address is moved."""
TABLES = ["", "", "", "table", "table", "table", "short", "long", "far"]
Change = tuple[int, int, int]


def descriptors(queue: Queue, chance: random.Random, first: int, changes: list[Change]) -> list[list[int]]:
    """Three descriptors of a row, with these changes: of each address, length, flags, next."""
    driver = queue.driver
    writes = chance.choice([0, WRITE])
    found = [
        [driver.store(chance.randbytes(HEAD)), HEAD, NEXT, first + 1],
        [driver.store(chance.randbytes(512)), 512, NEXT | writes, first + 2],
        [driver.allocate(TAIL), TAIL, WRITE, 0],
    ]
    for field, number, value in changes:
        before = found[number][field]
        found[number][field] = before ^ value if field == FLAGS else before + value if field == ADDRESS else value
    return found


def offer(queue: Queue, chance: random.Random, changes: list[Change], table: str) -> None:
    """Make such a buffer available: in the ring, in an indirect table, or in one of a wrong length or place."""
    packed = isinstance(queue, PackedQueue)
    first = 0 if table or packed else chance.randrange(SIZE - 2)
    three = descriptors(queue, chance, first, changes)
    if table:
        raw = b"".join(
            DESCRIPTOR.pack(address, length, following % 7 if packed else flags, flags if packed else following)
            for address, length, flags, following in three
        )
        place, length = (
            queue.driver.store(raw + DESCRIPTOR.pack(8, 8, WRITE, 0)),
            {"short": 47, "long": 64}.get(table, 48),
        )
        three = [[FAR if table == "far" else place, length, INDIRECT, chance.randrange(SIZE)]]
    if isinstance(queue, PackedQueue):
        flags = [NEXT * (number < len(three)) ^ (each[2] & ~NEXT) for number, each in enumerate(three, 1)]
        queue.write_chain(
            chance.randrange(99), [(each[0], each[1], kind) for each, kind in zip(three, flags, strict=True)]
        )
    elif isinstance(queue, SplitQueue):
        for number, each in enumerate(three):
            queue.describe(first + number, *each)
        queue.offer(first)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@settings(max_examples=100, deadline=None)
@given(
    buffers=st.lists(
        st.tuples(st.lists(st.sampled_from(CHANGES), max_size=1), st.sampled_from(TABLES)), min_size=1, max_size=3
    ),
    before=st.integers(0, SIZE),
    seed=st.integers(0, 1 << 32),
)
def test_a_row_is_what_the_walk_finds(
    kind: set[int], buffers: list[tuple[list[Change], str]], before: int, seed: int
) -> None:
    chance = random.Random(seed)
    with Driver(Echo, memory=1 << 18) as driver:
        driver.start(kind | {Feature.INDIRECT_DESC}, size=SIZE)
        queue, ours = driver.queues[0], driver.device.virtqueues[0]
        for _ in range(before):  # so that the ring wraps somewhere
            queue.send(b"x", write=1)
            queue.used()
        for changes, table in buffers:
            offer(queue, chance, changes, table)
        ring = ours._live()
        assert ring is not None
        state = bytes(driver.device.queue_state), bytes(driver.memory)
        rows = ring.rows(len(buffers), HEAD, TAIL)
        assert (bytes(driver.device.queue_state), bytes(driver.memory)) == state
        try:
            chains = ours.take(len(buffers))
        except GuestError:
            chains = []
        assert len(rows) <= len(chains)
        for (number, span, head, data, length, reads, tail), chain in zip(rows, chains, strict=False):
            pieces = [(head, HEAD)], [(tail, TAIL)]
            pieces[reads].insert(1 - reads, (data, length))
            expected = [[bytes(driver.memory[at : at + size]) for at, size in part if size] for part in pieces]
            assert (number, span) == (chain.id, chain.span)
            assert expected == [[*map(bytes, chain.readable)], [*map(bytes, chain.writable)]]
            assert (chain.size, chain.room) == tuple(sum(size for _, size in part) for part in pieces)
        at = 2 * before % SIZE  # in a packed ring
        if len(buffers) == 1 and buffers[0] in (([], ""), ([], "table")) and at <= SIZE - 3:
            assert len(rows) == 1, "an ordinary request is none"
