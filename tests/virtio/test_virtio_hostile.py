"""Hostile drivers: whatever they lay into a ring, the device sets NEEDS_RESET and lives on."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire import GuestError
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.virtio import Status
from bellwire.virtio.chain import MOST_BYTES
from vfio_user import IrqIndex
from virtio.conftest import KINDS
from virtio.driver import Driver
from virtio.echo import Echo
from virtio.rings import INDIRECT, NEXT, WRITE, PackedQueue, Queue, SplitQueue

pytestmark = pytest.mark.slow

SIZE = 16
FAR = 1 << 40
IN, OUT = 0, 1


DEVICES = ("echo", "disk", "disk one by one")
"""A device that goes through its buffers, a disk that does whole batches at once, and one that does not."""


@contextlib.contextmanager
def driven(device: str, memory: int = 8 << 20) -> Iterator[Driver]:
    """The driver of one of DEVICES."""
    if device == "echo":
        with Driver(Echo, memory=memory) as driver:
            yield driver
        return
    with Driver(VirtioBlk, memory=memory, queues=3, size=64 << 10) as driver:
        assert isinstance(driver.device, VirtioBlk)
        if device == "disk one by one":
            driver.device.fast = None
        yield driver


def add(queue: Queue) -> None:
    """Make a request available that the device can answer."""
    if isinstance(queue.driver.device, Echo):
        queue.add(b"o", b"k", write=[1, 1])
    else:
        queue.add(struct.pack("<IIQ", OUT, 0, 1), b"ok" * 256, write=[1])
        queue.add(struct.pack("<IIQ", IN, 0, 1), write=[512, 1])


def works(driver: Driver) -> None:
    """The device answers a request."""
    queue = driver.queues[0]
    add(queue)
    queue.kick()
    assert queue.answers() == ([b"ko"] if isinstance(driver.device, Echo) else [b"\0", b"ok" * 256 + b"\0"])


@pytest.fixture(params=DEVICES)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    with driven(request.param) as driver:
        yield driver


@pytest.fixture
def split(driver: Driver) -> SplitQueue:
    driver.start(KINDS["split"] | {28}, range(3))
    queue = driver.queues[0]
    assert isinstance(queue, SplitQueue)
    return queue


@pytest.fixture
def packed(driver: Driver) -> PackedQueue:
    driver.start(KINDS["packed"] | {28}, range(3))
    queue = driver.queues[0]
    assert isinstance(queue, PackedQueue)
    return queue


echo = pytest.mark.parametrize("driver", ["echo"], indirect=True)


def breaks(queue: SplitQueue | PackedQueue, why: str) -> None:
    """Ringing breaks the device, the driver is told, and a reset mends it."""
    driver = queue.driver
    driver.set_common(0x10, 0, 2)
    with pytest.raises(GuestError, match=why):
        queue.kick()
    assert Status.NEEDS_RESET in driver.status
    assert driver.guest.interrupts[IrqIndex.MSIX, 0] == 1
    queue.kick()  # nothing is looked at any more
    driver.start(driver.features)
    works(driver)


def test_a_loop(split: SplitQueue) -> None:
    split.describe(0, 0x1000, 4, NEXT, 1)
    split.describe(1, 0x1000, 4, NEXT, 0)
    split.offer(0)
    breaks(split, "a chain of more than 16 descriptors")


def test_a_head_beyond_the_table(split: SplitQueue) -> None:
    split.offer(SIZE)
    breaks(split, "descriptor 16 of 16")


def test_a_next_beyond_the_table(split: SplitQueue) -> None:
    split.describe(0, 0x1000, 4, NEXT, 0xFFFF)
    split.offer(0)
    breaks(split, "descriptor 65535 of 16")


def test_an_index_that_jumps(split: SplitQueue) -> None:
    split.set_word(split.avail + 2, SIZE + 1)
    breaks(split, "17 buffers available in a ring of 16")


def test_an_index_that_goes_back(split: SplitQueue) -> None:
    split.set_word(split.avail + 2, 0xFFFF)
    breaks(split, "65535 buffers available")


@pytest.mark.parametrize("address", [FAR, (1 << 64) - 2, (8 << 20) - 2])
def test_an_address_outside_memory(split: SplitQueue, address: int) -> None:
    split.describe(0, address, 4, 0, 0)
    split.offer(0)
    breaks(split, f"DMA map of 4 bytes at {address:#x}")


def test_a_length_beyond_memory(split: SplitQueue) -> None:
    split.describe(0, 0x1000, 0xFFFF_FFFF, WRITE, 0)
    split.offer(0)
    breaks(split, "DMA of 4294967295 bytes")


@pytest.mark.parametrize("device", DEVICES)
def test_more_bytes_than_a_buffer_may_have(device: str) -> None:
    with driven(device, memory=MOST_BYTES + (1 << 20)) as driver:
        driver.start()
        queue = driver.queues[0]
        assert isinstance(queue, SplitQueue)
        queue.describe(0, 0, MOST_BYTES, WRITE | NEXT, 1)
        queue.describe(1, 0, 1, WRITE, 0)
        queue.offer(0)
        breaks(queue, f"a buffer of more than {MOST_BYTES} bytes")


def test_a_part_to_read_after_one_to_write(split: SplitQueue) -> None:
    split.describe(0, 0x1000, 4, WRITE | NEXT, 1)
    split.describe(1, 0x1000, 4, 0, 0)
    split.offer(0)
    breaks(split, "to read comes after one to write")


@echo
def test_no_room_for_the_answer(split: SplitQueue) -> None:
    split.add(b"abc", write=2)
    breaks(split, "queue 0: a buffer has 2 bytes to write, 3 needed")


@pytest.mark.parametrize("length", [0, 15, 17, 16 * 1025])
def test_an_indirect_table_of_a_wrong_length(split: SplitQueue, length: int) -> None:
    split.describe(0, 0x1000, length, INDIRECT, 0)
    split.offer(0)
    breaks(split, f"an indirect table of {length} bytes")


def test_an_indirect_table_within_another(split: SplitQueue) -> None:
    split.describe(1, split.desc, 16, INDIRECT, 0)
    split.describe(0, split.desc, 32, INDIRECT, 0)
    split.offer(0)
    breaks(split, "an indirect table within another")


def test_an_indirect_table_that_loops(split: SplitQueue) -> None:
    table = split.driver.allocate(32)
    for slot in (0, 1):
        split.describe((table - split.desc) // 16 + slot, 0x1000, 4, NEXT, 1 - slot)
    split.describe(0, table, 32, INDIRECT, 0)
    split.offer(0)
    breaks(split, "a chain of more than 2 descriptors")


def test_a_ring_outside_memory(split: SplitQueue) -> None:
    split.driver.device.virtqueues[0].driver = FAR
    breaks(split, "DMA map of 38 bytes")


@echo
def test_more_buffers_than_the_ring_has_room_for(split: SplitQueue) -> None:
    queue = split.driver.queues[2]
    assert isinstance(queue, SplitQueue)
    queue.describe(0, 0x1000, 4, 0, 0)
    for _ in range(SIZE):
        queue.offer(0)
        queue.kick()
    queue.offer(0)
    with pytest.raises(GuestError, match="more than 16 buffers in our hands"):
        queue.kick()


def test_a_packed_chain_without_an_end(packed: PackedQueue) -> None:
    packed.write_chain(0, [(0x1000, 4, NEXT)] * SIZE)
    breaks(packed, "a chain of more than 16 descriptors")


def test_a_packed_buffer_outside_memory(packed: PackedQueue) -> None:
    packed.write_chain(0, [(FAR, 4, 0)])
    breaks(packed, "DMA map of 4 bytes")


def test_a_packed_table_within_another(packed: PackedQueue) -> None:
    table = packed.driver.store((0x1000).to_bytes(8, "little") + b"\x10\0\0\0\0\0\x04\0")
    packed.write_chain(0, [(table, 16, INDIRECT)])
    breaks(packed, "an indirect table within another")


def test_a_packed_table_that_goes_on(packed: PackedQueue) -> None:
    packed.write_chain(0, [(0x1000, 16, INDIRECT), (0x1000, 4, 0)])
    breaks(packed, "an indirect table that goes on")


@echo
def test_more_packed_descriptors_than_the_ring_has_room_for(packed: PackedQueue) -> None:
    queue = packed.driver.queues[2]
    assert isinstance(queue, PackedQueue)
    for _ in range(SIZE):
        queue.write_chain(0, [(0x1000, 4, 0)])
        queue.kick()
    queue.write_chain(0, [(0x1000, 4, 0)])
    with pytest.raises(GuestError, match="more than 16 descriptors in our hands"):
        queue.kick()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), junk=st.integers(1, 400))
def test_rings_of_junk(kind: str, device: str, seed: int, junk: int) -> None:
    """Rings that begin well and are then written all over: nothing but GuestErrors, and a reset mends it."""
    chance = random.Random(seed)
    with driven(device, memory=1 << 20) as driver:
        driver.start(KINDS[kind] | {28}, range(3))
        for queue in driver.queues.values():
            add(queue)
        spots = [address for queue in driver.queues.values() for address in queue.parts]
        for _ in range(junk):
            at = chance.choice(spots) + chance.randrange(16 * SIZE)
            driver.memory[at] = chance.choice((0, 1, 2, 4, 0x80, 0xFF, chance.getrandbits(8)))
            if chance.random() < 0.2:
                with contextlib.suppress(GuestError):
                    driver.notify(chance.choice(list(driver.queues.values())))
            if chance.random() < 0.05:
                with contextlib.suppress(GuestError):
                    driver.guest.advance()
        driver.start(KINDS[kind])
        works(driver)


@settings(max_examples=80, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 0x40), st.integers(0x1000, 0x1004), st.integers(0x3000, 0x3010)),
            st.sampled_from([1, 2, 4, 8]),
            st.one_of(st.sampled_from([0, 1, 0x0B, 0x0F, 0xFFFF, 0x1000]), st.integers(0, (1 << 64) - 1)),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_any_access_to_the_registers(accesses: list[tuple[int, int, int, bool]]) -> None:
    with Driver(Echo, memory=1 << 20) as driver:
        for offset, size, value, write in accesses:
            with contextlib.suppress(GuestError):
                if write:
                    driver.guest.write(0, value, offset=offset, size=size)
                else:
                    driver.guest.read(0, offset, size)
        driver.start()
        works(driver)
