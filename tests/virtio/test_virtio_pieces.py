"""Rings, tables and buffers that lie in several DMA maps: whatever the cuts, a driver sees what it sees without."""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.virtio import Feature, Status
from pieces import PAGE, cut
from vfio_user import DmaFlags, DmaMap, DmaUnmap
from virtio.conftest import KINDS
from virtio.driver import Driver
from virtio.echo import Echo

pytestmark = pytest.mark.slow

PAGES = 128
ALL = range(PAGES)


class Long(Echo, kind=62, queues=1, queue_size=1024):
    """An echo with rings of several pages."""


class Buffer(NamedTuple):
    """What a driver makes available at once."""

    pieces: list[bytes]
    room: list[int]
    indirect: bool


buffers = st.builds(
    Buffer,
    st.lists(st.binary(max_size=40), min_size=1, max_size=3),
    st.lists(st.integers(0, 70), min_size=1, max_size=3).map(lambda rooms: [*rooms, 120]),
    st.booleans(),
)


def driven(
    kind: set[int], size: int, start: int, script: list[list[Buffer]], cuts: tuple[int, ...] | range, seed: int | None
) -> list[object]:
    """All that a driver sees: answers, and whether it was interrupted for them and is to notify."""
    with Driver(Long, memory=PAGES * PAGE) as driver:
        if cuts:
            driver.memory = cut(driver.guest, cuts, shuffle=seed)
        driver._free = start
        driver.start(kind | {Feature.INDIRECT_DESC}, size=size)
        (queue,) = driver.queues.values()
        seen: list[object] = []
        keep = driver._free
        for batch in script:
            for buffer in batch:
                queue.add(*buffer.pieces, write=buffer.room, indirect=buffer.indirect)
            queue.kick()
            seen += [queue.answers(), sum(driver.guest.interrupts.values()), queue.wants_notification()]
            driver._free = keep
        return [*seen, driver.status]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@settings(max_examples=20, deadline=None)
@given(
    size=st.sampled_from([16, 256, 1024]),
    start=st.integers(64, 200).map(lambda unit: 64 * unit),
    script=st.lists(st.lists(buffers, max_size=2), min_size=1, max_size=8),
    cuts=st.just(tuple(ALL)) | st.lists(st.integers(1, 24), min_size=1, max_size=12, unique=True).map(tuple),
    seed=st.none() | st.integers(0, 99),
)
def test_no_cutting_of_memory_into_maps_makes_a_difference(
    kind: set[int], size: int, start: int, script: list[list[Buffer]], cuts: tuple[int, ...], seed: int | None
) -> None:
    assert driven(kind, size, start, script, cuts, seed) == driven(kind, size, start, script, (), None)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_ring_of_pages_in_any_order_goes_round_and_round(kind: set[int]) -> None:
    script = [[Buffer([b"%04d" % turn], [120], indirect=False)] * 50 for turn in range(45)]
    seen = driven(kind, 1024, PAGE + 64, script, ALL, 1)
    assert seen[::3][:-1] == [[(b"%04d" % turn)[::-1]] * 50 for turn in range(45)]
    assert Status.NEEDS_RESET not in Status(seen[-1])  # type: ignore[arg-type]


def test_a_ring_in_one_map_costs_no_mapping_of_its_own() -> None:
    with Driver(Long, memory=PAGES * PAGE) as driver:
        driver.start(size=1024)
        driver.queues[0].send(b"x", write=1)
        assert len(driver.guest._dma._joined) == 0


def test_a_ring_in_pieces_is_joined_once_while_its_maps_stand() -> None:
    with Driver(Long, memory=PAGES * PAGE) as driver:
        driver.memory = cut(driver.guest, ALL)
        driver.start(size=1024)
        queue, table = driver.queues[0], driver.guest._dma
        queue.send(b"x", write=1)
        before = dict(table._joined)
        assert before
        driver.guest.device.dma.changed()  # other memory has come or gone
        queue.send(b"y", write=1)
        assert dict(table._joined) == before
        assert queue.answers() == [b"x", b"y"]


def test_a_ring_whose_map_has_gone_is_waited_for_and_touches_nothing() -> None:
    with Driver(Long, memory=PAGES * PAGE) as driver:
        driver.memory = cut(driver.guest, ALL)
        driver.start(size=1024)
        queue, table = driver.queues[0], driver.guest._dma
        queue.send(b"x", write=1)
        page = queue.desc // PAGE * PAGE + PAGE
        table.unmap(table.inside(DmaUnmap(page, PAGE)))
        driver.guest.device.dma.changed()
        before = os.pread(driver.guest._memory_fd, PAGES * PAGE, 0)
        queue.kick()
        assert Status.NEEDS_RESET not in driver.status
        assert os.pread(driver.guest._memory_fd, PAGES * PAGE, 0) == before
        table.map(DmaMap(DmaFlags.READ | DmaFlags.WRITE, page, page, PAGE), os.dup(driver.guest._memory_fd))
        driver.guest.device.dma.changed()
        driver.device.core.news.memory()
        assert len(queue.answers()) == 1


def test_a_disks_requests_may_be_cut_anywhere() -> None:
    with Driver(VirtioBlk, memory=PAGES * PAGE, size=1 << 20) as driver:
        driver.memory = cut(driver.guest, ALL, shuffle=3)
        driver._free = 2 * PAGE - 64  # a header at the end of a page, data over three, the status behind
        driver.start({9}, size=128)
        queue = driver.queues[0]
        data = os.urandom(8192)
        for kind, (out, room) in ((1, (data, 1)), (0, (b"", 8193))):
            queue.send(struct.pack("<IIQ", kind, 0, 8) + out, write=room)
            driver.guest.advance()
        wrote, read = queue.answers()
        assert (wrote, read) == (b"\0", data + b"\0")
