"""nvme's engine: turns of queues, what is done at once, what waits for a slot, and what is counted under way."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.io import blame
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.storage import Disk, MemoryDisk
from bellwire.testing import Guest
from nvme.driver import PAGE, Driver, Queues, TestMachine, prps

READ, WRITE, FLUSH = IoOpcode.READ, IoOpcode.WRITE, IoOpcode.FLUSH
CREATE_CQ, CREATE_SQ = AdminOpcode.CREATE_COMPLETION_QUEUE, AdminOpcode.CREATE_SUBMISSION_QUEUE
BELLS = AdminOpcode.DOORBELL_BUFFER_CONFIG


def guest_of(driver: Driver) -> Guest[Nvme]:
    assert isinstance(driver.machine, TestMachine)
    return driver.machine.guest


def under_way(driver: Driver) -> list[int]:
    """What is counted: commands of each admin and first I/O queue, and slots of the journal in use."""
    controller = guest_of(driver).device.controller
    queues = controller.queues
    pairs = (*queues.submissions[:2], *queues.completions[:2])
    return [*(queue.running for queue in pairs), 256 - len(controller.engine._journal.free)]


def put_large(queues: Queues, opcode: IoOpcode, number: int) -> None:
    """Commands of 128 KiB each."""
    address = queues.driver.allocate(32 * PAGE)
    prp1, prp2 = prps(queues.driver, range(address, address + 32 * PAGE, PAGE))
    for block in range(number):
        queues.put(opcode, nsid=1, prp1=prp1, prp2=prp2, dwords=(block, 0, 255))


# -- turns


def test_a_queue_has_its_turn_for_256_commands(driver: Driver) -> None:
    queues = driver.create_queues(1, 1024)
    for _ in range(600):
        queues.put(FLUSH, nsid=1)
    queues.ring()
    assert len(queues.reap()) == 256
    driver.machine.step()
    assert len(queues.reap()) == 600 - 256


@pytest.mark.unsaved("counts turns, and a restored controller works off its queues at once")
def test_between_two_turns_of_a_queue_another_has_its_own(driver: Driver) -> None:
    first, second = driver.create_queues(1, 1024), driver.create_queues(2, 4)
    for _ in range(300):
        first.put(FLUSH, nsid=1)
    first.ring()
    second.put(FLUSH, nsid=1)
    second.ring()
    assert (len(second.reap()), len(first.reap())) == (1, 256)


@pytest.mark.unsaved("counts turns, and a restored controller works off its queues at once")
def test_a_turn_that_is_due_when_the_controller_stops_is_none(driver: Driver) -> None:
    queues = driver.create_queues(1, 1024)
    for _ in range(300):
        queues.put(FLUSH, nsid=1)
    queues.ring()
    driver.disable()
    driver.machine.step()
    assert len(queues.reap()) == 256


@pytest.mark.parametrize("opcode", [READ, WRITE])
def test_a_mebibyte_and_a_half_are_moved_at_once_in_each_turn(driver: Driver, opcode: IoOpcode) -> None:
    queues = driver.create_queues()
    for _ in range(2):
        put_large(queues, opcode, 13)
        queues.ring()
        assert len(queues.reap()) == 12
        driver.machine.step()
        assert len(queues.reap()) == 1


def test_commands_wait_in_their_queue_while_256_are_under_way(
    on_image: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Disk, "flush", lambda _: None)  # it would take its time
    queues = on_image.create_queues(1, 512)
    for _ in range(300):
        queues.put(FLUSH, nsid=1)
    queues.ring()
    assert under_way(on_image) == [0, 256, 0, 256, 256]
    assert guest_of(on_image).device.controller.queues.submissions[1].head == 256
    on_image.machine.step()
    on_image.machine.step()
    assert len(queues.reap()) == 300
    assert under_way(on_image) == [0] * 5


def test_commands_that_can_have_no_completion_wait_in_their_queue(on_image: Driver) -> None:
    queues = on_image.create_queues(1, 4)
    queues.auto_head = False
    for _ in range(3):
        queues.put(FLUSH, nsid=1)
    queues.ring()
    on_image.machine.step()
    queues.put(FLUSH, nsid=1)
    queues.ring()
    assert under_way(on_image) == [0] * 5
    queues.reap()
    queues.take_head()
    assert under_way(on_image) == [0, 1, 0, 1, 1]


# -- what is under way


def test_a_deleted_queue_leaves_nothing_under_way(on_image: Driver) -> None:
    queues = on_image.create_queues(1)
    queues.put(FLUSH, nsid=1)
    queues.ring()
    cid = on_image.admin.put(AdminOpcode.DELETE_SUBMISSION_QUEUE, dwords=(1,))
    on_image.admin.ring()
    assert under_way(on_image) == [0, 1, 1, 1, 1]
    on_image.admin.wait(cid)
    assert under_way(on_image) == [0] * 5


@pytest.mark.parametrize("how", ["reset", "restore"])
def test_what_was_under_way_is_so_no_longer_or_again(on_image: Driver, how: str) -> None:
    guest = guest_of(on_image)
    queues = on_image.create_queues(1)
    for _ in range(3):
        queues.put(FLUSH, nsid=1)
    queues.ring()
    assert under_way(on_image) == [0, 3, 0, 3, 3]
    if how == "reset":
        guest.reset()
        assert under_way(on_image) == [0] * 5
    else:
        guest.restore(guest.snapshot())
        assert under_way(on_image) == [0, 3, 0, 3, 3]
        on_image.machine.step()
        assert (len(queues.reap()), under_way(on_image)) == (3, [0] * 5)


def test_a_deletion_that_waits_is_done_in_another_process(on_image: Driver) -> None:
    queues = on_image.create_queues(1)
    queues.put(FLUSH, nsid=1)
    queues.ring()
    cid = on_image.admin.put(AdminOpcode.DELETE_SUBMISSION_QUEUE, dwords=(1,))
    on_image.admin.ring()
    guest = guest_of(on_image)
    guest.restore(guest.snapshot())
    assert under_way(on_image) == [0, 1, 1, 1, 1]
    assert on_image.admin.wait(cid)[0].status == 0
    assert under_way(on_image) == [0] * 5
    assert guest.device.controller.queues.submissions[1].size == 0


def test_a_deletion_of_an_idle_queue_that_a_snapshot_has_is_done_at_once(on_image: Driver) -> None:
    """The thread had ended the last command, and no one had looked."""
    on_image.create_queues(1)
    guest = guest_of(on_image)
    queues = guest.device.controller.queues
    queues.submissions[1].deleter = 0x77 + 1
    guest.restore(guest.snapshot())
    assert [done.cid for done in on_image.admin.reap()] == [0x77]
    assert (queues.submissions[1].size, under_way(on_image)) == (0, [0] * 5)


# -- shadow doorbells


def test_commands_that_were_there_before_the_shadows_are_done(driver: Driver) -> None:
    queues = driver.create_queues()
    cid = queues.put(FLUSH, nsid=1)
    tails = driver.allocate(PAGE)
    driver.memory[tails + 8] = queues.tail
    assert driver.admin.do(BELLS, prp1=tails, prp2=driver.allocate(PAGE)).status == 0
    assert [done.cid for done in queues.reap()] == [cid]


def test_commands_that_nobody_has_rung_for_are_done_in_another_process(driver: Driver) -> None:
    queues = driver.create_queues()
    guest = guest_of(driver)
    queues.put(FLUSH, nsid=1)
    guest.device.controller.queues.submissions[1].tail = 1
    guest.restore(guest.snapshot())
    assert len(queues.reap()) == 1


# -- completions


def test_a_command_that_fails_says_that_there_is_more_in_the_log_and_whether_to_try_again(driver: Driver) -> None:
    more, never = 0x2000, 0x4000
    assert driver.admin.do(0x7F).status == Status.INVALID_OPCODE | more | never
    assert driver.create_queues().do(READ, nsid=9).status == Status.INVALID_FIELD | more | never


@pytest.mark.parametrize("opcode", [READ, FLUSH])
def test_a_disk_that_fails_is_counted_once_and_logged(
    on_image: Driver, monkeypatch: pytest.MonkeyPatch, opcode: IoOpcode, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(errno.EIO, "broken")

    queues = on_image.create_queues()
    monkeypatch.setattr(os, "preadv", fail)
    monkeypatch.setattr(os, "fdatasync", fail)
    queues.do(opcode, nsid=1, prp1=on_image.allocate(PAGE))
    counters = guest_of(on_image).device.controller.logs.counters
    assert (counters.media, counters.errors) == (1, 1)
    assert [record.getMessage() for record in caplog.records if "disk:" in record.getMessage()] == [
        "disk: [Errno 5] broken"
    ]


@pytest.mark.parametrize(
    ("error", "opcode", "status"),
    [
        (CommandError(Status.COMPARE_FAILURE), READ, Status.COMPARE_FAILURE),
        (ValueError(), READ, Status.INTERNAL_ERROR),
        (OSError(errno.ENOSPC, ""), WRITE, Status.CAPACITY_EXCEEDED),
        (OSError(errno.EDQUOT, ""), WRITE, Status.CAPACITY_EXCEEDED),
        (OSError(errno.EIO, ""), WRITE, Status.WRITE_FAULT),
        (OSError(errno.EIO, ""), IoOpcode.COPY, Status.WRITE_FAULT),
        (OSError(errno.EIO, ""), READ, Status.UNRECOVERED_READ_ERROR),
        (OSError(errno.EIO, ""), IoOpcode.COMPARE, Status.UNRECOVERED_READ_ERROR),
        (OSError(errno.EIO, ""), IoOpcode.VERIFY, Status.UNRECOVERED_READ_ERROR),
    ],
)
def test_an_error_of_the_disk_is_a_status(error: Exception, opcode: IoOpcode, status: Status) -> None:
    assert blame(error, opcode).status is status


def test_events_wait_while_the_admin_completion_queue_is_full(guest: Guest[Nvme]) -> None:
    driver = Driver(TestMachine(guest), admin_size=4)
    driver.enable()
    driver.admin.auto_head = False
    driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST, cid=0x66)
    for cid in (1, 2, 3):
        driver.admin.put(0x7F, cid=cid)
        driver.admin.ring()
    driver.machine.write(0x1000 + 8 * 9, 1, 4)
    assert [done.cid for done in driver.admin.reap()] == [1, 2, 3]
    driver.admin.take_head()
    assert [done.cid for done in driver.admin.reap()] == [0x66]


def test_a_request_is_not_aborted_while_there_is_no_room_for_its_completion(guest: Guest[Nvme]) -> None:
    driver = Driver(TestMachine(guest), admin_size=3)
    driver.enable()
    driver.admin.auto_head = False
    driver.admin.put(AdminOpcode.ASYNC_EVENT_REQUEST, cid=0x66)
    driver.admin.put(0x7F, cid=1)
    driver.admin.ring()
    driver.admin.put(AdminOpcode.ABORT, dwords=(0x66 << 16,), cid=2)
    driver.admin.ring()
    assert [(done.cid, done.result) for done in driver.admin.reap()] == [(1, 0), (2, 1)]


# -- what commands ask of a disk


Calls = list[tuple[Any, ...]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What disks have been asked for."""
    calls: Calls = []

    def note(name: str) -> Any:
        def call(_: Disk, *arguments: Any, **keywords: Any) -> None:
            calls.append((name, *arguments, *keywords.values()))

        return call

    for name in ("zero", "discard", "flush"):
        monkeypatch.setattr(Disk, name, note(name))
    return calls


@pytest.mark.same_device("lists what the disk is asked for, and it is flushed when a device closes it")
@pytest.mark.parametrize("deallocate", [False, True])
@pytest.mark.parametrize("unit_access", [False, True])
def test_write_zeroes_frees_space_only_if_it_is_asked_to(
    on_image: Driver, asked: Calls, deallocate: bool, unit_access: bool
) -> None:
    dword = 7 | deallocate << 25 | unit_access << 30
    assert on_image.create_queues().do(IoOpcode.WRITE_ZEROES, nsid=1, dwords=(16, 0, dword)).status == 0
    assert asked == [("zero", 8192, 4096, deallocate)] + [("flush",)] * unit_access


@pytest.mark.same_device("lists what the disk is asked for, and it is flushed when a device closes it")
@pytest.mark.parametrize(("dword11", "count"), [(4, 2), (3, 0), (8, 0)])
def test_only_the_hint_to_deallocate_has_an_effect(on_image: Driver, asked: Calls, dword11: int, count: int) -> None:
    page = on_image.allocate(PAGE)
    struct.pack_into("<IIQIIQIIQIIQ", on_image.memory, page, 0, 8, 0, 0, 0, 64, 0, 1, 2047, 0, 99, 0)
    done = on_image.create_queues().do(IoOpcode.DATASET_MANAGEMENT, nsid=1, prp1=page, dwords=(1 << 8 | 2, dword11))
    assert done.status == 0
    assert asked == [("discard", 0, 4096), ("discard", 2047 * 512, 512)][:count]


def test_verify_reads_a_mebibyte_at_a_time(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []

    def note(_: Disk, buffers: Sequence[memoryview], offset: int) -> None:
        read.append((offset, sum(map(len, buffers))))

    monkeypatch.setattr(MemoryDisk, "read", note)
    assert driver.create_queues().do(IoOpcode.VERIFY, nsid=1, dwords=(3, 0, 4999)).status == 0
    mebibyte = 1 << 20
    assert read == [(1536, mebibyte), (1536 + mebibyte, mebibyte), (1536 + 2 * mebibyte, 2560000 - 2 * mebibyte)]


def test_a_flush_of_all_is_of_every_disk_that_is_open(driver: Driver, asked: Calls) -> None:
    assert driver.create_queues().do(FLUSH, nsid=0xFFFF_FFFF).status == 0
    assert asked == []  # memory is as durable as it gets


def test_a_snapshot_of_a_controller_that_stops_may_have_commands_of_queues_that_have_ended(driver: Driver) -> None:
    guest = guest_of(driver)
    queues = driver.create_queues(1, 8)
    driver.memory[0:16] = struct.pack("<IIQ", 0, 8, 0)
    queues.put(opcode=IoOpcode.DATASET_MANAGEMENT, nsid=1, prp1=0, dwords=[0, 4])
    queues.ring()
    guest.write(Nvme.cc, 0)
    assert guest.device.controller.journal.entries(), "a thread executes it"
    guest.restore(guest.snapshot())
    assert driver.csts == 0
    driver.enable()
    assert len(driver.identify(1)) == 4096
