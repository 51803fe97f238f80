"""Which bytes of a ring mean what (virtio 1.2 §2.7, §2.8), seen from the device's end of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from unittest import mock

import pytest

from bellwire import GuestError
from bellwire.model import capabilities as pci
from bellwire.model.dma import Dma
from bellwire.virtio.packed import PackedRing
from bellwire.virtio.split import SplitRing
from bellwire.virtio.status import Status
from vfio_user import IrqIndex
from virtio.conftest import KINDS
from virtio.driver import READY, Driver
from virtio.echo import Echo
from virtio.rings import AVAILABLE, USED, WRITE, PackedQueue, Queue, SplitQueue
from virtio.test_virtio_batches import wrong

MEMORY = 1 << 16
SIZE = 8
LENGTHS = {
    SplitRing: {"desc": 16 * SIZE, "driver": 6 + 2 * SIZE, "device_area": 6 + 8 * SIZE},
    PackedRing: {"desc": 16 * SIZE, "driver": 4, "device_area": 4},
}
"""Bytes of each part (§2.7, §2.8.10)."""


@pytest.fixture
def driver(ring: set[int]) -> Iterator[Driver]:
    with Driver(Echo, memory=MEMORY) as driver:
        driver.start(ring, range(3), size=SIZE)
        yield driver


@pytest.fixture
def queue(driver: Driver) -> Queue:
    return driver.queues[0]


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("part", ["desc", "driver", "device_area"])
def test_a_ring_may_end_where_memory_does(kind: type[SplitRing | PackedRing], part: str) -> None:
    with Driver(Echo, memory=MEMORY) as driver:
        queue, end = driver.device.virtqueues[0], MEMORY - LENGTHS[kind][part]
        queue.size, queue.desc, queue.driver, queue.device_area = SIZE, 0x1000, 0x2000, 0x3000
        setattr(queue, part, end)
        made = kind(queue, driver.device.dma, event_idx=True)
        assert made.take(1) == []
        made.listen()
        setattr(queue, part, end + 1)
        with pytest.raises(GuestError):
            kind(queue, driver.device.dma, event_idx=True)


def test_so_many_buffers_are_taken_as_were_asked_for(driver: Driver, queue: Queue) -> None:
    ours = driver.device.virtqueues[0]
    assert ours.take() == []
    for number in range(6):
        queue.add(b"%d" % number)
    for most, got in ((1, [b"0"]), (2, [b"1", b"2"]), (4, [b"3", b"4", b"5"]), (1, [])):
        chains = ours.take(most)
        assert [chain.read() for chain in chains] == got
        assert [chain.span for chain in chains] == [1] * len(got)


def test_a_wrong_buffer_ends_what_is_taken_and_breaks_the_device_in_its_turn(driver: Driver, queue: Queue) -> None:
    ours = driver.device.virtqueues[0]
    queue.add(b"first")
    wrong(queue)
    queue.add(b"third")
    assert [chain.read() for chain in ours.take(3)] == [b"first"]
    assert driver.status == READY
    with pytest.raises(GuestError, match="queue 0: DMA map of 4 bytes"):
        ours.take(3)
    assert Status.NEEDS_RESET in driver.status


def test_a_whole_ring_of_buffers_may_be_in_the_devices_hands(driver: Driver) -> None:
    """Turn after turn, from any place in the ring."""
    assert isinstance(driver.device, Echo)
    queue = driver.queues[2]
    for turn in range(SIZE + 1):
        for number in range(SIZE):
            queue.add(b"%d" % number)
        queue.kick() if turn % 2 else driver.device.attend(driver.device.virtqueues[2])
        held = driver.device.held
        assert [chain.read() for chain in held] == [b"%d" % number for number in range(SIZE)]
        held[0].done()
        held[1].done()
        driver.device.virtqueues[2].flush()
        del held[:2]
        assert len(queue.used()) == 2
        queue.send(b"8")
        assert len(held) == SIZE - 1
        for chain in held:
            chain.done()
        held.clear()
        driver.device.virtqueues[2].flush()
        assert len(queue.used()) == SIZE - 1


def test_a_chain_may_take_every_slot_of_the_ring(queue: Queue) -> None:
    for _ in range(3):
        queue.send(*[b"x"] * (SIZE - 1), write=SIZE)
        assert queue.answers() == [b"x" * (SIZE - 1)]
        queue.send(b"y", write=1)
        assert queue.answers() == [b"y"]


def test_what_was_put_back_comes_again_in_order_and_empty(driver: Driver, queue: Queue) -> None:
    ours = driver.device.virtqueues[0]
    for turn in range(2 * SIZE + 1):
        for number in range(3):
            queue.add(b"%d" % number, write=1)
        first, *others = ours.take(3)
        others[0].write(b"!")
        before = ours.out
        ours.back(others)
        assert ours.out < before
        again = ours.take(9)
        assert [(chain.read(), chain.written) for chain in again] == [(b"1", 0), (b"2", 0)], f"turn {turn}"
        ours.finish([first, *again])
        ours.flush()
        assert ours.out == 0
        assert len(queue.used()) == 3


def test_a_queue_that_may_not_be_used_gives_nothing_and_takes_nothing(ring: set[int]) -> None:
    """Before DRIVER_OK (§3.1.1)."""
    with Driver(Echo, memory=MEMORY) as driver:
        assert isinstance(driver.device, Echo)
        driver.device.let_go()  # a queue that no driver has set up yet
        driver.negotiate(ring)
        queue, ours = driver.add_queue(0), driver.device.virtqueues[0]
        queue.add(b"x", write=1)
        before = bytes(driver.memory)
        assert ours.take() == []
        assert ours.listen() is False
        assert [*ours.batches()] == []
        ours.back([])
        ours.silence()
        ours.flush()
        assert bytes(driver.memory) == before


def test_a_buffer_of_a_driver_that_has_gone_is_not_returned_to_the_next(driver: Driver) -> None:
    assert isinstance(driver.device, Echo)
    driver.queues[2].send(b"x", write=1)
    (chain,) = driver.device.held
    driver.start(driver.features, range(3), size=SIZE)
    driver.device.let_go()
    chain.done()  # work that was under way
    driver.start(driver.features, range(3), size=SIZE)
    driver.queues[2].send(b"y", write=1)
    assert driver.queues[2].used() == []
    driver.device.let_go()
    assert driver.queues[2].answers() == [b"y"]


@pytest.mark.parametrize("ring", [KINDS["packed"]], ids=["packed"])
@pytest.mark.parametrize("written", [0, 1])
def test_a_used_descriptor_is_marked_as_written_if_it_is(driver: Driver, written: int) -> None:
    """§2.8.4: the device sets WRITE if it has written any part of the buffer."""
    queue = driver.queues[0]
    assert isinstance(queue, PackedQueue)
    for turn in range(2 * SIZE):
        place = queue.at
        queue.send(b"x" * written, write=1)
        _, length, number, flags = struct.unpack_from("<QIHH", driver.memory, queue.desc + 16 * place)
        marks = 0 if 2 * turn // SIZE % 2 else AVAILABLE | USED
        assert (length, number, flags) == (written, turn, marks | (WRITE if written else 0))
        queue.used()


@pytest.mark.parametrize("ring", [KINDS["packed"], KINDS["packed-event"]], ids=["packed", "packed-event"])
@pytest.mark.parametrize("reserved", [0, 0xFFFC])
@pytest.mark.parametrize(("flags", "interrupts"), [(0, 3), (1, 0), (2, None), (3, 3)])
def test_the_low_bits_of_the_drivers_flags_say_when_to_interrupt(
    driver: Driver, queue: Queue, flags: int, interrupts: int | None, reserved: int
) -> None:
    """§2.8.14: a descriptor only with EVENT_IDX; the other bits are reserved."""
    assert isinstance(queue, PackedQueue)
    struct.pack_into("<HH", driver.memory, queue.ours, 1 | queue.wrap << 15, reserved | flags)
    for _ in range(3):
        queue.send(b"x", write=1)
    if interrupts is None:
        interrupts = 1 if queue.event_idx else 3
    assert driver.guest.interrupts[IrqIndex.MSIX, 1] == interrupts


@pytest.mark.parametrize("ring", [KINDS["split"], KINDS["split-event"]], ids=["split", "split-event"])
@pytest.mark.parametrize(("flags", "interrupts"), [(0, 1), (1, 0), (2, 1), (3, 0)])
def test_a_driver_without_events_says_by_one_flag_if_it_wants_interrupts(
    driver: Driver, queue: Queue, flags: int, interrupts: int
) -> None:
    """§2.7.7: with EVENT_IDX the flags are reserved, and used_event counts."""
    assert isinstance(queue, SplitQueue)
    queue.set_word(queue.avail, flags)
    queue.send(b"x", write=1)
    assert driver.guest.interrupts[IrqIndex.MSIX, 1] == (1 if queue.event_idx else interrupts)


@pytest.mark.parametrize("ring", [KINDS["split"], KINDS["split-event"]], ids=["split", "split-event"])
def test_a_used_ring_has_index_heads_and_lengths(driver: Driver, queue: Queue) -> None:
    """§2.7.8, with avail_event behind the elements (§2.7.10)."""
    assert isinstance(queue, SplitQueue)
    heads = []
    for turn in range(1, SIZE + 3):
        heads.append(queue.free[0])
        queue.send(b"x" * (turn % 3), write=4)
        flags, index = struct.unpack_from("<HH", driver.memory, queue.ring)
        assert (flags, index) == (0, turn)
        elements = struct.unpack_from(f"<{2 * SIZE}I", driver.memory, queue.ring + 4)
        at = 2 * ((turn - 1) % SIZE)
        assert elements[at : at + 2] == (heads[-1], turn % 3)
        assert queue.word(queue.ring + 4 + 8 * SIZE) == (turn if queue.event_idx else 0)
        queue.used()


@pytest.mark.parametrize("ring", [KINDS["split-event"]], ids=["split-event"])
@pytest.mark.parametrize("event", range(SIZE))
def test_used_event_follows_the_available_ring(driver: Driver, queue: Queue, event: int) -> None:
    """§2.7.7: an interrupt comes when the buffer of that number is used."""
    assert isinstance(queue, SplitQueue)
    queue.set_word(queue.avail + 4 + 2 * SIZE, event)
    counts = []
    for _ in range(SIZE + 1):
        queue.send(b"x", write=1)
        queue.used()
        counts.append(driver.guest.interrupts[IrqIndex.MSIX, 1])
    assert counts == [0] * event + [1] * (SIZE + 1 - event)


def test_the_drivers_wish_is_read_after_buffers_are_published(
    driver: Driver, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """§2.7.7.1, §2.8.21.3.1: a driver that looks for buffers once more, and then asks to be told, misses none."""
    seen: list[int] = []

    def fence() -> None:
        seen.append(len(queue.used()))
        if queue.event_idx:
            queue.interrupt_after(100 % SIZE)
        else:
            queue.silence()

    queue.add(b"x", write=1)
    ours = driver.device.virtqueues[0]
    ours.finish(ours.take())
    monkeypatch.setattr("bellwire.virtio.virtqueue.fence", fence)
    ours.flush()
    assert seen == [1]
    assert driver.guest.interrupts[IrqIndex.MSIX, 1] == 0


def test_a_buffer_is_looked_for_after_the_device_has_asked_to_be_told(
    driver: Driver, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """§2.7.10.1: of a buffer that comes in between, neither side would tell the other."""

    def fence() -> None:
        assert queue.wants_notification()
        queue.add(b"x", write=1)

    for module in ("split", "packed"):
        monkeypatch.setattr(f"bellwire.virtio.{module}.fence", fence)
    assert driver.device.virtqueues[0].listen() is True


def test_a_device_can_ask_for_silence_and_then_for_the_next_buffer(driver: Driver, queue: Queue) -> None:
    """§2.7.10, §2.8.10. With EVENT_IDX, a split ring is silent while avail_event stays where it is."""
    ours = driver.device.virtqueues[0]
    assert queue.wants_notification()
    ours.silence()
    queue.add(b"x", write=1)
    assert not queue.wants_notification()
    assert ours.listen() is True
    assert len(ours.take(2)) == 1
    assert ours.listen() is False
    assert queue.wants_notification()


@pytest.mark.parametrize("gone", ["bus master", "client"])
def test_a_buffer_waits_while_the_device_may_not_reach_it(driver: Driver, queue: Queue, gone: str) -> None:
    queue.send(b"x", write=1)
    assert queue.answers() == [b"x"]
    queue.add(b"y", write=1)
    before = bytes(driver.memory)
    if gone == "client":
        driver.device.core.join(False)
    else:
        driver.guest.config_write(pci.COMMAND, pci.MEMORY_ENABLE, 2)
    queue.kick()
    assert bytes(driver.memory) == before
    if gone == "client":
        driver.device.core.join(True)
    driver.guest.config_write(pci.COMMAND, pci.MEMORY_ENABLE | pci.BUS_MASTER, 2)
    queue.kick()
    assert queue.answers() == [b"y"]


def test_a_ring_is_looked_up_once_while_memory_stays_as_it_is(driver: Driver, queue: Queue) -> None:
    def echo() -> None:
        queue.send(b"x", write=1)
        assert queue.answers() == [b"x"]

    echo()
    with mock.patch.object(Dma, "whole", autospec=True, side_effect=Dma.whole) as whole:
        for _ in range(3):
            echo()
        assert whole.call_count == 0
        driver.device.dma.changed()
        echo()
        assert whole.call_count == 3


def test_dma_counts_the_bytes_of_published_buffers(ring: set[int]) -> None:
    with Driver(Echo, memory=MEMORY) as driver:
        driver.start(ring)
        driver.queues[0].send(b"abc", write=8)
        driver.queues[0].send(b"de", write=8)
        assert driver.device.dma.counts["dma_in_place"] == 2 * (3 + 2)
