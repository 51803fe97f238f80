"""nvme's queues as rings (§4.1): what is fetched, what there is room for, and which doorbell values can be."""

from __future__ import annotations

import struct

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.events import Event
from bellwire.bundled.nvme.queue_set import QueueSet
from bellwire.bundled.nvme.queues import CompletionQueue, SubmissionQueue
from bellwire.testing import Guest
from nvme.driver import Driver


@pytest.fixture
def queues(guest: Guest[Nvme], driver: Driver, monkeypatch: pytest.MonkeyPatch) -> QueueSet:
    """Those of an enabled controller, whose bad doorbells are in ``bad``."""
    found = guest.device.controller.queues
    bad.clear()
    monkeypatch.setattr(found, "_bad", bad.append)
    return found


bad: list[Event] = []


def test_a_doorbell_of_a_queue_that_there_cannot_be_is_bad(queues: QueueSet) -> None:
    for qid in (64, 65, 66):
        assert queues.rung_tail(qid, 0) is None
        assert queues.rung_head(qid, 0) == []
    assert bad == [Event.INVALID_DOORBELL_REGISTER] * 6


def test_a_tail_lies_in_its_queue(queues: QueueSet) -> None:
    assert queues.rung_tail(0, 31) is queues.submissions[0]
    assert queues.submissions[0].tail == 31
    for tail in (32, 33, 0xFFFF_FFFF):
        assert queues.rung_tail(0, tail) is None
    assert queues.submissions[0].tail == 31
    assert bad == [Event.INVALID_DOORBELL_VALUE] * 3


def test_a_head_moves_up_to_the_tail_and_no_further(queues: QueueSet) -> None:
    queue = queues.completions[0]
    queue.head, queue.tail = 30, 2
    for head, taken in ((31, True), (3, False), (30, False), (32, False), (1, True), (2, True), (3, False)):
        bad.clear()
        assert queues.rung_head(0, head) == []
        assert (queue.head == head, bad) == (taken, [] if taken else [Event.INVALID_DOORBELL_VALUE])


def test_a_head_that_makes_room_wakes_those_that_have_commands(queues: QueueSet) -> None:
    queue, sq = queues.completions[0], queues.submissions[0]
    queue.head, queue.tail, sq.head, sq.tail = 0, 31, 3, 4
    assert queues.rung_head(0, 1) == [sq]
    assert queues.rung_head(0, 2) == []  # there was room already
    queue.head, queue.tail, sq.head = 0, 31, 4
    assert queues.rung_head(0, 1) == []


def test_commands_are_fetched_up_to_the_end_of_the_ring(guest: Guest[Nvme], driver: Driver) -> None:
    queue = SubmissionQueue()
    queue.running, queue.deleter, queue.tail = 5, 6, 7
    queue.create(0x8000, 4, 2)
    assert (queue.base, queue.size, queue.cqid) == (0x8000, 4, 2)
    assert (queue.head, queue.tail, queue.running, queue.deleter) == (0, 0, 0, 0)
    entries = [bytes([number]) * 64 for number in range(4)]
    guest.memory[0x8000:0x8100] = b"".join(entries)
    dma = guest.device.dma
    assert queue.fetch(dma, 16) == b""
    queue.tail = 3
    assert (queue.fetch(dma, 1), queue.head) == (entries[0], 1)
    assert (queue.fetch(dma, 16), queue.head) == (entries[1] + entries[2], 3)
    queue.tail = 1
    assert (queue.fetch(dma, 16), queue.head) == (entries[3], 0)
    queue.give_back(2)
    assert queue.head == 2
    assert queue.fetch(dma, 0) == b""


def test_completions_are_written_with_the_phase_of_their_pass(guest: Guest[Nvme], driver: Driver) -> None:
    sq, queue = SubmissionQueue(), CompletionQueue()
    sq.qid, sq.head = 3, 9
    queue.head, queue.tail, queue.running = 1, 1, 1
    queue.create(0x8000, 4, 2, True)
    assert (queue.head, queue.tail, queue.running, queue.phase) == (0, 0, 0, 1)
    assert (queue.vector, queue.interrupts, queue.room) == (2, 1, 3)
    queue.running = 1
    assert queue.room == 2
    guest.memory[0x8000:0x8040] = bytes(64)
    dma = guest.device.dma
    queue.post(dma, [(7, sq, 1, 0), (8, sq, 2, 5), (9, sq, 3, 0)])
    queue.head = 3
    queue.post(dma, [(10, sq, 4, 0), (11, sq, 5, 1)])
    assert (queue.tail, queue.phase) == (1, 0)
    assert [struct.unpack_from("<IIHHHH", guest.memory, 0x8000 + 16 * place) for place in range(4)] == [
        (11, 0, 9, 3, 5, 2), (8, 0, 9, 3, 2, 11), (9, 0, 9, 3, 3, 1), (10, 0, 9, 3, 4, 1),
    ]  # fmt: skip
