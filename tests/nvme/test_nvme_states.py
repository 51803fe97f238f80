"""nvme between operations: restored queues that can be, namespaces that are held, closed or gone, and what waits."""

from __future__ import annotations

import errno
import struct
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.namespace import Namespace
from bellwire.bundled.nvme.namespaces import Namespaces, id_list
from bellwire.bundled.nvme.optional import healing
from bellwire.bundled.nvme.queue_set import QueueSet
from bellwire.bundled.nvme.queues import CompletionQueue, SubmissionQueue
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.storage import MemoryDisk
from bellwire.testing import Guest
from nvme.driver import AQA, CC, ENABLE, PAGE, Driver, Queues, TestMachine

BLOCK_ERASE = 2


# -- restored queues


def submissions(**fields: int) -> SubmissionQueue:
    """A queue outside of any state, with no command under way."""
    queue = SubmissionQueue(**fields)
    queue.word = memoryview(bytearray(8)).cast("Q")
    return queue


@pytest.mark.parametrize("kind", [submissions, CompletionQueue])
@pytest.mark.parametrize(
    ("size", "head", "tail", "possible"),
    [
        (0, 9, 9, True),
        (1, 0, 0, False),
        (2, 0, 0, True),
        (2, 1, 1, True),
        (2, 2, 0, False),
        (2, 0, 2, False),
        (3, 2, 2, True),
        (1024, 1023, 0, True),
        (1025, 0, 0, False),
    ],
)
def test_a_queue_has_2_to_1024_entries_and_its_ends_in_them(
    kind: Callable[..., SubmissionQueue | CompletionQueue], size: int, head: int, tail: int, possible: bool
) -> None:
    assert kind(size=size, head=head, tail=tail).is_possible is possible


@pytest.mark.parametrize(("deleter", "possible"), [(0, True), (1, True), (1 << 16, True), ((1 << 16) + 1, False)])
def test_a_deleter_is_a_command_id_plus_one(deleter: int, possible: bool) -> None:
    assert submissions(size=2, deleter=deleter).is_possible is possible


@pytest.mark.parametrize(("phase", "vector", "possible"), [(0, 0, True), (1, 64, True), (2, 0, False), (0, 65, False)])
def test_a_completion_queue_has_a_phase_and_a_vector(phase: int, vector: int, possible: bool) -> None:
    assert CompletionQueue(size=2, phase=phase, vector=vector).is_possible is possible


def test_a_snapshot_has_admin_queues_of_up_to_4096_entries(guest: Guest[Nvme]) -> None:
    machine = TestMachine(guest)
    machine.write(AQA, 0x0FFF_0FFF, 4)
    machine.write(CC, ENABLE, 4)
    guest.device.core.restore(guest.device.core.snapshot())
    assert guest.device.controller.queues.admin.size == 4096


def test_what_cannot_be_is_told(driver: Driver, guest: Guest[Nvme]) -> None:
    queues: QueueSet = guest.device.controller.queues
    assert queues.impossible([(0, b"")]) == ""
    assert queues.impossible([(0, b""), (1, b"")]) == "a command of submission queue 1"
    assert queues.impossible([(65, b"")]) == "a command of submission queue 65"
    sq, cq = queues.submissions[2], queues.completions[2]
    sq.size, sq.cqid = 4, 2
    assert queues.impossible([]) == "submission queue 2 whose completion queue is 2"
    cq.size = 4
    assert queues.impossible([(2, b"")]) == ""
    sq.cqid = 65
    assert queues.impossible([]) == "submission queue 2 whose completion queue is 65"
    sq.cqid, sq.head, sq.tail, cq.tail = 2, 5, 1, 6
    assert queues.impossible([]) == "submission queue 2 of 4 entries, head 5, tail 1"
    sq.head = 3
    assert queues.impossible([]) == "completion queue 2 of 4 entries, head 0, tail 6"


# -- turns and jobs


def guest_of(driver: Driver) -> Guest[Nvme]:
    assert isinstance(driver.machine, TestMachine)
    return driver.machine.guest


def test_after_a_reset_that_cancelled_a_turn_the_queue_has_turns_again(driver: Driver) -> None:
    for _ in range(2):
        queues = driver.create_queues(1, 1024)
        for _ in range(300):
            queues.put(IoOpcode.FLUSH, nsid=1)
        queues.ring()
        assert len(queues.reap()) == 256
        guest = guest_of(driver)
        guest.device.core.reset()
        guest.enable()
        driver.next_page = 0x10000
        driver.admin = Queues(driver, 0, 32)
        driver.enable()
    queues = driver.create_queues(1, 1024)
    for _ in range(300):
        queues.put(IoOpcode.FLUSH, nsid=1)
    queues.ring()
    driver.machine.step()
    assert len(queues.reap()) == 300


@pytest.mark.unsaved("looks at what waits inside the engine, which a restore repeats")
@pytest.mark.parametrize(
    ("opcode", "nsid", "dword"),
    [
        (AdminOpcode.NAMESPACE_MANAGEMENT, 1, 1),
        (AdminOpcode.FORMAT_NVM, 1, 0),
        (AdminOpcode.SANITIZE, 0, BLOCK_ERASE),
    ],
)
def test_what_erases_waits_until_no_io_is_under_way(
    on_image: Driver, image: Path, opcode: AdminOpcode, nsid: int, dword: int
) -> None:
    waiting = guest_of(on_image).device.controller.engine._waiting
    queues = on_image.create_queues()
    page = on_image.allocate(PAGE)
    on_image.memory[page : page + PAGE] = b"bell" * 1024
    write = queues.put(IoOpcode.WRITE, nsid=1, prp1=page, dwords=(0, 0, 7))
    queues.ring()
    cid = on_image.admin.put(opcode, nsid=nsid, dwords=(dword,))
    on_image.admin.ring()
    assert len(waiting) == 1
    assert queues.wait(write)[0].status == 0
    assert len(waiting) == 0
    assert on_image.admin.wait(cid)[0].status == 0


def test_a_sanitize_that_succeeds_ends_failure_mode(on_image: Driver) -> None:
    state = guest_of(on_image).device.controller.store.record.sanitize
    state.status, state.failure_mode = 3, True
    on_image.admin.do(AdminOpcode.SANITIZE, dwords=(BLOCK_ERASE,))
    assert (state.status, state.action, state.failure_mode) == (2, BLOCK_ERASE, False)
    for _ in range(10_000):
        if state.status != 2:
            break
        on_image.machine.step()
    assert (state.status, state.failure_mode) == (1, False)


# -- namespaces


def space(nsid: int, size: int = 8192, **more: Any) -> Namespace:
    return Namespace(nsid, MemoryDisk(size), 512, uuid.UUID(int=nsid), **more)


@pytest.mark.parametrize(
    ("error", "at", "left", "saved"),
    [
        (None, 10, [(14, 2)], 1),
        (None, 4, [(10, 6)], 0),
        (OSError(errno.EIO, "no"), 10, [(10, 6)], 0),
        (OSError(errno.EIO, "no"), 4, [(10, 6)], 0),
    ],
)
def test_blocks_are_healed_once_they_are_written(
    error: Exception | None, at: int, left: list[tuple[int, int]], saved: int
) -> None:
    lossy = space(1, lost=[(10, 6)])
    saves: list[int] = []
    task = healing(lossy, at * 512, 4 * 512, lambda: saves.append(1), lambda: None)
    assert (lossy.lost.ranges, saves) == ([(10, 6)], [])
    assert task.ended(error) == 0
    assert (lossy.lost.ranges, len(saves)) == (left, saved)
    assert not task.alone


def test_a_valid_id_is_one_of_32_or_of_as_many_as_there_are() -> None:
    assert Namespaces([]).most == Namespaces([space(1)]).most == 32
    spaces = Namespaces([space(40), space(2)])
    assert spaces.most == 40
    for nsid in (0, 41, 0xFFFF_FFFF):
        with pytest.raises(CommandError) as refused:
            spaces.find(nsid)
        assert refused.value.status == Status.INVALID_NAMESPACE
    assert (spaces.find(1), spaces.existing(40).nsid) == (None, 40)
    assert [each.nsid for each in spaces.allocated] == [2, 40]


def status_of(spaces: Namespaces, nsid: int) -> Status | None:
    try:
        return None if spaces[nsid].nsid == nsid else Status.INTERNAL_ERROR
    except CommandError as error:
        return Status(error.status)


def test_io_is_accepted_by_what_is_attached_and_neither_held_nor_closed() -> None:
    first, second, third = space(1), space(2), space(3, attached=False)
    spaces = Namespaces([first, second, third])
    field = Status.INVALID_FIELD
    assert [status_of(spaces, nsid) for nsid in (1, 2, 3, 4)] == [None, None, field, field]
    assert spaces.addressed(0xFFFF_FFFF) == (first, second)
    assert spaces.addressed(2) == (second,)
    assert spaces.attached == [first, second]
    spaces.hold([first], Status.FORMAT_IN_PROGRESS)
    assert [status_of(spaces, nsid) for nsid in (1, 2)] == [Status.FORMAT_IN_PROGRESS, None]
    assert spaces.addressed(0xFFFF_FFFF) == (second,)
    with pytest.raises(CommandError):
        first.check_free()
    second.check_free()
    spaces.close_for(Status.SANITIZE_FAILED)
    assert [status_of(spaces, nsid) for nsid in (1, 2, 4)] == [Status.SANITIZE_FAILED] * 3
    with pytest.raises(CommandError) as refused:
        spaces.addressed(0xFFFF_FFFF)
    assert refused.value.status == Status.SANITIZE_FAILED
    spaces.close_for(None)
    spaces.hold([first], None)
    third.attached = True
    assert status_of(spaces, 3) == Status.INTERNAL_ERROR, "not before a refresh"
    spaces.refresh()
    assert [status_of(spaces, nsid) for nsid in (1, 2, 3)] == [None] * 3


def test_what_is_deleted_gives_its_capacity_back() -> None:
    given, made = space(1, 8192), space(2, 4096, number=1)
    spaces = Namespaces([given, made], spare=16384)
    assert (given.made, made.made) == (False, True)
    assert (spaces.capacity, spaces.unallocated, spaces.free_id()) == (24576, 12288, 3)
    spaces.remove(given)
    assert (spaces.capacity, spaces.unallocated, spaces.free_id()) == (24576, 20480, 1)
    assert spaces.disks == [made.disk, given.disk], "it stays open, and locked"
    spaces.remove(made)
    assert (spaces.capacity, spaces.unallocated, spaces.disks) == (24576, 24576, [given.disk])
    spaces.add(space(1, 4096, number=2))
    assert (spaces.unallocated, list(spaces.open)) == (20480, [1])


def test_less_than_nothing_is_left_of_capacity_that_shrank() -> None:
    spaces = Namespaces([space(2, 4096, number=1)], spare=4095, retired=[])
    assert (spaces.capacity, spaces.unallocated) == (4095, 0)
    assert Namespaces([], retired=[MemoryDisk(512)]).unallocated == 512


def test_a_list_has_the_ids_above_one() -> None:
    spaces = [space(nsid, 512) for nsid in (1, 2, 5)]
    assert id_list(spaces, 1) == struct.pack("<2I", 2, 5).ljust(4096, b"\0")
    assert id_list(spaces, 5) == bytes(4096)
    assert len(id_list([spaces[0]] * 1025, 0)) == 4096


@pytest.mark.parametrize(("start", "count", "fits"), [(0, 16, True), (15, 1, True), (16, 0, True), (15, 2, False)])
def test_a_span_ends_with_the_namespace(start: int, count: int, fits: bool) -> None:
    if fits:
        assert space(1).span(start, count) == (start * 512, count * 512)
    else:
        with pytest.raises(CommandError) as refused:
            space(1).span(start, count)
        assert refused.value.status == Status.LBA_OUT_OF_RANGE


def test_a_format_changes_blocks_and_forgets_lost_ones() -> None:
    changed = space(1, lost=[(3, 1)])
    changed.format(12)
    assert (changed.shift, changed.blocks, len(changed.lost)) == (12, 2, 0)


def test_lost_blocks_beyond_a_new_end_are_forgotten() -> None:
    changed = space(1, lost=[(3, 1), (9, 4)])
    assert changed.resize(10 * 512, shrink=True) is True
    assert (changed.blocks, changed.lost.ranges) == (10, [(3, 1), (9, 1)])
    assert changed.resize(10 * 512, shrink=True) is False
    assert changed.resize(12 * 512, shrink=False) is True
    assert changed.lost.ranges == [(3, 1), (9, 1)]


def test_a_failed_save_of_a_new_namespace_leaves_none(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = guest_of(driver).device.controller
    controller.namespaces._spare = 1 << 20
    page = driver.allocate(PAGE)
    struct.pack_into("<QQ", driver.memory, page, 8, 8)

    def fail() -> None:
        raise OSError(errno.ENOSPC, "full")

    closed: list[int] = []
    monkeypatch.setattr(MemoryDisk, "close", lambda disk: closed.append(disk.size))
    with monkeypatch.context() as failing:
        failing.setattr(controller, "save", fail)
        assert driver.admin.do(AdminOpcode.NAMESPACE_MANAGEMENT, prp1=page, dwords=(0,)).status != 0
    assert (closed, [each.nsid for each in controller.namespaces.allocated]) == ([8 * 512], [1, 2])
    assert driver.admin.do(AdminOpcode.NAMESPACE_MANAGEMENT, prp1=page, dwords=(0,)).result == 3
