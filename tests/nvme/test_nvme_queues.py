"""nvme's queues as rings (§4.1): what is fetched, what there is room for, and which doorbell values can be."""

from __future__ import annotations

import struct

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.events import Event
from bellwire.bundled.nvme.queue_set import QueueSet
from bellwire.bundled.nvme.queues import BATCH_STATE, CompletionQueue, SubmissionQueue, place_batches
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
    place_batches([queue], memoryview(bytearray(BATCH_STATE)))
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
    queue.give_back(1)
    assert queue.head == 3
    assert queue.reopen() == []
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


# -- shadow doorbells


TAILS, EVENTS = 0x4000, 0x5000


@pytest.fixture
def shadowed(guest: Guest[Nvme], driver: Driver, queues: QueueSet) -> QueueSet:
    """The same with shadow doorbells, and a queue pair with the number 2 and 8 entries."""
    driver.create_queues(2, 8)
    guest.memory[TAILS : EVENTS + 0x1000] = bytes(0x2000)
    queues.shadow.configure(TAILS, EVENTS)
    bad.clear()
    return queues


def put(guest: Guest[Nvme], qid: int, *, tail: int = 0, head: int = 0) -> None:
    """What the guest stores in the first buffer."""
    struct.pack_into("<II", guest.memory, TAILS + 8 * qid, tail, head)


def asked(guest: Guest[Nvme], qid: int) -> tuple[int, int]:
    """The event indices of a queue pair: of its tail and its head."""
    tail, head = struct.unpack_from("<II", guest.memory, EVENTS + 8 * qid)
    return tail, head


def test_shadow_doorbells_are_for_io_queues_once_there_are_some(queues: QueueSet) -> None:
    def active() -> list[bool]:
        return [queues.shadow.active, *(queues.shadowed(sq) for sq in queues.submissions[:2])]

    assert active() == [False, False, False]
    queues.shadow.configure(TAILS, EVENTS)
    assert active() == [True, False, True]
    queues.forget()
    assert active() == [False, False, False]


def test_each_shadow_has_its_place(guest: Guest[Nvme], shadowed: QueueSet) -> None:
    shadow = shadowed.shadow
    put(guest, 2, tail=0x0102_0304, head=0x0506_0708)
    assert (shadow.tail(2), shadow.head(2)) == (0x0102_0304, 0x0506_0708)
    assert (shadow.tail(1), shadow.head(1)) == (0, 0)
    assert shadow.wake_at_tail(2, 5) == 0x0102_0304
    assert shadow.wake_at_head(2, 6) == 0x0506_0708
    assert (asked(guest, 1), asked(guest, 2), asked(guest, 3)) == ((0, 0), (5, 6), (0, 0))


def test_a_ring_of_a_queue_with_a_shadow_gives_no_value(guest: Guest[Nvme], shadowed: QueueSet) -> None:
    sq = shadowed.submissions[2]
    for value in (3, 99, None):
        assert shadowed.rung_tail(2, value) is sq
    assert (sq.tail, bad) == (0, [])
    assert shadowed.rung_tail(0, 3) is shadowed.submissions[0]
    assert shadowed.submissions[0].tail == 3


def test_a_shadow_tail_is_read_if_it_lies_in_its_queue(guest: Guest[Nvme], shadowed: QueueSet) -> None:
    sq, cq = shadowed.submissions[2], shadowed.completions[2]
    for tail, taken in ((7, 7), (8, 7), (0xFFFF_FFFF, 7), (0, 0)):
        put(guest, 2, tail=tail)
        sq.head = sq.tail
        assert len(shadowed.fetch(sq, cq, 1)) == (0 if tail > 7 else 64)
        assert sq.tail == taken
    assert bad == [Event.INVALID_DOORBELL_VALUE] * 2


def test_the_guest_is_asked_to_ring_for_the_next_command_of_an_empty_queue(
    guest: Guest[Nvme], shadowed: QueueSet
) -> None:
    sq, cq = shadowed.submissions[2], shadowed.completions[2]
    sq.head = sq.tail = 3
    put(guest, 2, tail=3)
    assert shadowed.fetch(sq, cq, 9) == b""
    assert asked(guest, 2) == (3, 0)
    put(guest, 2, tail=5)
    assert len(shadowed.fetch(sq, cq, 1)) == 64
    assert (sq.tail, asked(guest, 2)) == (5, (3, 0)), "it need not ring while there are commands"
    put(guest, 2, tail=6)
    assert len(shadowed.fetch(sq, cq, 9)) == 64
    assert sq.tail == 5, "the queue was not empty"
    put(guest, 2, tail=8)
    assert shadowed.fetch(sq, cq, 9) == b""
    assert bad == [Event.INVALID_DOORBELL_VALUE]


def test_a_command_that_comes_while_the_guest_is_asked_is_seen(
    guest: Guest[Nvme], shadowed: QueueSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    sq = shadowed.submissions[2]

    def meanwhile(qid: int, tail: int) -> int:
        assert (qid, tail) == (2, 0)
        return 1

    monkeypatch.setattr(shadowed.shadow, "wake_at_tail", meanwhile)
    assert len(shadowed.fetch(sq, shadowed.completions[2], 9)) == 64
    assert sq.tail == 1


@pytest.mark.same_device("holds a part of the controller")
@pytest.mark.parametrize("msix", [True, False])
def test_a_full_queue_or_one_with_a_line_asks_for_the_next_head(
    guest: Guest[Nvme], shadowed: QueueSet, msix: bool
) -> None:
    if not msix:
        guest.config_write(guest.device.core.config.at[0x11] + 2, 0, 2)
    cq, sq = shadowed.completions[2], shadowed.submissions[2]
    cq.tail = 6
    put(guest, 2, head=2)
    assert shadowed.room(sq, cq) == 1
    assert (cq.head, asked(guest, 2)) == (0, (0, 0)), "there is room: nobody need look"
    cq.tail = 7
    assert shadowed.room(sq, cq) == 2
    assert (cq.head, asked(guest, 2)) == (2, (0, 0 if msix else 2))
    cq.tail = 1
    assert shadowed.room(sq, cq) == 0
    assert asked(guest, 2) == (0, 2)


def test_the_head_of_an_admin_queue_is_in_no_shadow(guest: Guest[Nvme], shadowed: QueueSet) -> None:
    put(guest, 0, head=5)
    sq, cq = shadowed.submissions[0], shadowed.completions[0]
    cq.head, cq.tail, cq.running = 0, 31, 0
    assert shadowed.room(sq, cq) == 0
    assert cq.head == 0
    shadowed.rung_head(0, 4)
    assert (cq.head, bad) == (4, [])


def test_a_ring_for_a_head_reads_the_shadow(guest: Guest[Nvme], shadowed: QueueSet) -> None:
    cq, sq = shadowed.completions[2], shadowed.submissions[2]
    cq.tail, sq.tail = 7, 1
    put(guest, 2, head=4)
    assert shadowed.rung_head(2, 6) == [sq]
    assert (cq.head, bad) == (4, [])


@pytest.mark.same_device("holds a part of the controller")
@pytest.mark.parametrize("msix", [True, False])
@pytest.mark.parametrize("shadows", [True, False])
def test_a_head_is_looked_at_after_a_completion_only_for_the_line(
    guest: Guest[Nvme], shadowed: QueueSet, msix: bool, shadows: bool
) -> None:
    if not msix:
        guest.config_write(guest.device.core.config.at[0x11] + 2, 0, 2)
    if not shadows:
        shadowed.shadow.configure(0, 0)
        guest.memory[:64] = b"\xff" * 64
    put(guest, 2, head=1)
    put(guest, 0, head=1)
    for qid in (2, 0):
        cq = shadowed.completions[qid]
        cq.tail = cq.head
        shadowed.post(cq, [(0, shadowed.submissions[qid], 1, 0)])
    looked = shadows and not msix
    assert (shadowed.completions[2].head == 1, bad) == (looked, [])
    assert asked(guest, 2) == (0, 0)


def test_a_ring_by_event_without_shadows_is_logged(
    queues: QueueSet, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.create_queues(1)
    assert queues.rung_tail(1, None) is None
    assert "submission queue 1 rung by event, and the guest has no shadow doorbells" in caplog.text
    assert queues.rung_head(1, None) == []
    assert (queues.completions[1].head, bad) == (0, [])
