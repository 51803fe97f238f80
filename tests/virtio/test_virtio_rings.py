"""Split and packed virtqueues (virtio 1.2 §2.7, §2.8): buffers, order, and who is told when."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bellwire.model import capabilities as pci
from bellwire.virtio import Virtqueue
from vfio_user import DmaFlags, DmaMap, IrqIndex
from virtio.conftest import KINDS
from virtio.driver import Driver
from virtio.echo import Echo
from virtio.rings import Queue, SplitQueue


@pytest.fixture
def driver(ring: set[int]) -> Iterator[Driver]:
    with Driver(Echo) as driver:
        driver.start(ring, range(3))
        yield driver


@pytest.fixture
def queue(driver: Driver) -> Queue:
    return driver.queues[0]


def interrupts(queue: Queue) -> int:
    return queue.driver.guest.interrupts[IrqIndex.MSIX, queue.index + 1]


def test_a_buffer_comes_back_with_the_answer(queue: Queue) -> None:
    queue.send(b"hello", write=16)
    assert queue.answers() == [b"olleh"]


def test_a_buffer_may_be_in_many_pieces(queue: Queue) -> None:
    queue.send(b"he", b"l", b"lo", write=[2, 1, 9])
    assert queue.answers() == [b"olleh"]


def test_a_buffer_may_be_in_an_indirect_table(queue: Queue) -> None:
    queue.send(b"he", b"l", b"lo", write=[2, 1, 9], indirect=True)
    assert queue.answers() == [b"olleh"]


def test_a_table_may_have_more_descriptors_than_the_queue(queue: Queue) -> None:
    queue.send(*[b"x"] * 40, write=[10] * 40, indirect=True)
    assert queue.answers() == [b"x" * 40]


def test_a_piece_may_be_empty(queue: Queue) -> None:
    queue.send(b"", b"ab", write=[0, 2])
    assert queue.answers() == [b"ba"]


def test_one_notification_is_enough_for_all_buffers(queue: Queue) -> None:
    for n in range(8):
        queue.add(b"%d" % n, write=1)
    queue.kick()
    assert queue.answers() == [b"%d" % n for n in range(8)]


def test_the_ring_goes_round_and_round(queue: Queue) -> None:
    for n in range(3 * queue.size):
        queue.send(b"%d" % n, b"+", write=[2, 4])
        assert queue.answers() == [b"+" + b"%d" % n if n < 10 else b"+" + (b"%d" % n)[::-1]]


@pytest.mark.parametrize("ring", [KINDS["split"], KINDS["split-event"]], ids=["split", "split-event"])
def test_indices_wrap_at_65536(driver: Driver, queue: Queue) -> None:
    assert isinstance(queue, SplitQueue)
    ours = driver.device.virtqueues[0]
    ours.next = ours.used = queue.available = queue.seen = 0xFFFE
    queue.set_word(queue.ring + 2, 0xFFFE)
    for n in range(6):
        queue.send(b"%d" % n, write=1)
    assert queue.answers() == [b"%d" % n for n in range(6)]
    assert ours.next == 4


def test_one_batch_is_one_interrupt(queue: Queue) -> None:
    for _ in range(6):
        queue.add(b"x", write=1)
    queue.kick()
    assert interrupts(queue) == 1


def test_a_driver_that_wants_no_interrupt_gets_none(queue: Queue) -> None:
    if queue.event_idx:
        queue.interrupt_after(5)
    else:
        queue.silence()
    queue.send(b"x", write=1)
    assert interrupts(queue) == 0


@pytest.mark.parametrize("ring", [KINDS["split-event"], KINDS["packed-event"]], ids=["split", "packed"])
def test_with_events_the_interrupt_comes_with_the_buffer_asked_for(queue: Queue) -> None:
    for _ in range(queue.size // 2 + 1):
        queue.used()
        queue.interrupt_after(3)
        before = interrupts(queue)
        for _ in range(3):
            assert interrupts(queue) == before
            queue.send(write=1)
        assert interrupts(queue) == before + 1


@pytest.mark.parametrize("ring", [KINDS["split-event"], KINDS["packed-event"]], ids=["split", "packed"])
def test_a_batch_interrupts_if_the_buffer_asked_for_is_in_it(queue: Queue) -> None:
    for turn in range(2 * queue.size):
        queue.used()
        queue.interrupt_after(1 + turn % 5)
        before = interrupts(queue)
        for _ in range(4):
            queue.add(write=1)
        queue.kick()
        assert interrupts(queue) == before + (turn % 5 < 4), f"turn {turn}"
        queue.used()
        queue.send(write=1)  # so that batches begin at every place


def test_the_device_wants_no_notifications_while_it_is_at_work(
    driver: Driver, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = []

    def notified(ours: Virtqueue) -> None:
        for chain in ours:
            wanted.append(queue.wants_notification())
            chain.done()

    monkeypatch.setattr(driver.device, "notified", notified)
    for _ in range(3):
        queue.add(write=1)
    queue.kick()
    assert wanted == [False] * 3


def test_the_device_asks_to_be_notified_when_it_has_done_all(queue: Queue) -> None:
    assert queue.wants_notification()
    queue.send(b"x", write=1)
    assert queue.wants_notification()


def test_buffers_may_come_back_later_and_in_another_order(driver: Driver) -> None:
    assert isinstance(driver.device, Echo)
    queue = driver.queues[2]
    for n in range(4):
        queue.send(b"%d" % n, write=1)
    assert queue.answers() == []
    driver.device.held.reverse()
    driver.device.let_go()
    assert queue.answers() == [b"3", b"2", b"1", b"0"]
    assert interrupts(queue) == 1


def test_a_buffer_taken_can_be_put_back(driver: Driver) -> None:
    queue, ours = driver.queues[0], driver.device.virtqueues[0]
    for n in range(2 * queue.size):
        parts = (b"%d" % (n % 10), b"x")
        queue.add(*parts, write=2)
        (chain,) = ours.take()
        ours.back([chain])
        queue.kick()
        assert queue.answers() == [b"x" + parts[0]]


def test_a_ring_is_where_the_memory_is_now(driver: Driver, queue: Queue) -> None:
    queue.send(b"x", write=1)
    guest, size = driver.guest, len(driver.memory)
    guest._dma.clear()
    flags = DmaFlags.READ | DmaFlags.WRITE
    guest._dma.map(DmaMap(flags=flags, offset=0, address=0, size=size), os.dup(guest._memory_fd))
    guest.device.dma.changed()
    view = next(iter(guest.segments(0, size, True))).view
    assert view is not None
    driver.memory = queue.memory = view
    queue.send(b"y", write=1)
    assert queue.answers() == [b"x", b"y"]


def test_a_device_that_may_not_be_bus_master_touches_nothing(driver: Driver, queue: Queue) -> None:
    chain_waits = driver.queues[2]
    chain_waits.send(b"x", write=1)
    driver.guest.config_write(pci.COMMAND, pci.MEMORY_ENABLE, 2)
    before = bytes(driver.memory)
    assert isinstance(driver.device, Echo)
    driver.device.virtqueues[2].flush()
    driver.guest.write(0, 2, offset=chain_waits.bell, size=2)
    assert bytes(driver.memory) == before


def test_queues_are_left_alone_until_the_driver_is_ready(ring: set[int]) -> None:
    with Driver(Echo) as driver:
        driver.negotiate(ring)
        queue = driver.add_queue(0)
        queue.send(b"x", write=1)
        assert queue.answers() == []


def test_a_ringful_at_a_time_then_the_rest_of_the_device_has_its_turn(driver: Driver) -> None:
    queue, ours = driver.queues[0], driver.device.virtqueues[0]
    queue.add(write=1)
    seen = 0
    for chain in ours:
        seen += 1
        chain.done()
        ours.flush()
        queue.used()
        queue.add(b"more", write=4)
    assert seen == queue.size
    assert queue.answers() == []
    assert len(driver.guest._timers) == 1
    driver.guest.advance()
    assert queue.answers() == [b"erom"]
