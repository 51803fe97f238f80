"""Commands that a fault strikes."""

from __future__ import annotations

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, Command, IoOpcode
from bellwire.bundled.nvme.interception import Fate, Interception
from bellwire.bundled.nvme.status import DO_NOT_RETRY, Status
from bellwire.testing import Guest
from nvme.driver import Driver

pytestmark = pytest.mark.same_device("a fault is no part of a snapshot, and the tests hold where it is put in")

READ = IoOpcode.READ


@pytest.fixture
def interception(guest: Guest[Nvme]) -> Interception:
    return guest.device.controller.engine.interception


def test_a_command_fails_with_the_status_and_is_logged(driver: Driver, interception: Interception) -> None:
    queues = driver.create_queues()
    interception.add(lambda qid, command: Fate(Status.UNRECOVERED_READ_ERROR) if command.cdw10 == 7 and qid else None)
    assert queues.do(READ, nsid=1, prp1=0x2000, dwords=(7, 0, 0)).code == Status.UNRECOVERED_READ_ERROR
    assert queues.do(READ, nsid=1, prp1=0x2000, dwords=(8, 0, 0)).status == 0
    counters = driver.machine.guest.device.controller.logs.counters  # type: ignore[attr-defined]  # the VM-less guest
    assert (counters.media, counters.errors) == (1, 1)


@pytest.mark.parametrize(("retry", "expected"), [(None, DO_NOT_RETRY), (True, 0), (False, DO_NOT_RETRY)])
def test_do_not_retry_is_the_faults_choice(
    driver: Driver, interception: Interception, retry: bool | None, expected: int
) -> None:
    queues = driver.create_queues()
    interception.add(lambda qid, command: Fate(Status.WRITE_FAULT, retry=retry) if qid else None)
    assert queues.do(READ, nsid=1, prp1=0x2000).status & DO_NOT_RETRY == expected


def test_the_first_judge_that_decides_is_heard(driver: Driver, interception: Interception) -> None:
    queues = driver.create_queues()
    interception.add(lambda qid, command: None)
    interception.add(lambda qid, command: Fate(Status.INTERNAL_ERROR) if qid else None)
    interception.add(lambda qid, command: Fate(Status.WRITE_FAULT) if qid else None)
    assert queues.do(READ, nsid=1, prp1=0x2000).code == Status.INTERNAL_ERROR


def test_without_a_judge_the_engine_is_as_before(driver: Driver, interception: Interception) -> None:
    engine = driver.machine.guest.device.controller.engine  # type: ignore[attr-defined]  # the VM-less guest
    plain = engine.execute, engine.drain

    def judge(_qid: int, _command: Command) -> None:
        return None

    interception.add(judge)
    interception.stall()
    assert (engine.execute, engine.drain) != plain
    interception.remove(judge)
    interception.go_on()
    assert (engine.execute, engine.drain) == plain


def test_a_command_that_waits_completes_later_and_others_overtake_it(
    guest: Guest[Nvme], driver: Driver, interception: Interception
) -> None:
    queues = driver.create_queues()
    interception.add(lambda qid, command: Fate(wait=0.5) if qid and command.cdw10 == 0 else None)
    slow = queues.put(READ, nsid=1, prp1=0x2000, dwords=(0, 0, 0))
    fast = queues.put(READ, nsid=1, prp1=0x3000, dwords=(1, 0, 0))
    queues.ring()
    assert [done.cid for done in queues.reap()] == [fast]
    guest.advance(0.5)
    assert [done.cid for done in queues.reap()] == [slow]


def test_a_lost_command_never_completes(guest: Guest[Nvme], driver: Driver, interception: Interception) -> None:
    queues = driver.create_queues()
    interception.add(lambda qid, command: Fate(lost=True) if qid else None)
    queues.put(READ, nsid=1, prp1=0x2000)
    queues.ring()
    guest.advance(100)
    assert queues.reap() == []


def test_a_command_completes_twice(driver: Driver, interception: Interception) -> None:
    queues = driver.create_queues()
    interception.add(lambda qid, command: Fate(twice=True) if qid else None)
    cid = queues.put(READ, nsid=1, prp1=0x2000)
    queues.ring()
    assert [done.cid for done in queues.reap()] == [cid, cid]


def test_completing_twice_never_overruns_the_queue(driver: Driver, interception: Interception) -> None:
    queues = driver.create_queues(size=4)
    queues.auto_head = False
    interception.add(lambda qid, command: Fate(twice=True) if qid else None)
    cids = [queues.put(READ, nsid=1, prp1=0x2000) for _ in range(3)]
    queues.ring()
    assert [done.cid for done in queues.reap()] == cids


def test_a_controller_reset_ends_what_waits(guest: Guest[Nvme], driver: Driver, interception: Interception) -> None:
    queues = driver.create_queues()
    interception.add(lambda qid, command: Fate(wait=0.5) if qid else None)
    queues.put(READ, nsid=1, prp1=0x2000)
    queues.ring()
    room = len(guest.device.controller.journal.free)
    driver.disable()
    assert len(guest.device.controller.journal.free) == room + 1
    guest.advance(1)
    assert queues.reap() == []


def test_a_queue_with_a_waiting_command_is_deleted_after_it(
    guest: Guest[Nvme], driver: Driver, interception: Interception
) -> None:
    queues = driver.create_queues()
    interception.add(lambda qid, command: Fate(wait=0.5) if qid else None)
    cid = queues.put(READ, nsid=1, prp1=0x2000)
    queues.ring()
    deletion = driver.admin.put(AdminOpcode.DELETE_SUBMISSION_QUEUE, dwords=(queues.qid,))
    driver.admin.ring()
    assert driver.admin.reap() == []
    guest.advance(0.5)
    assert [done.cid for done in queues.reap()] == [cid]
    assert [done.cid for done in driver.admin.reap()] == [deletion]


def test_a_snapshot_has_the_commands_that_wait(guest: Guest[Nvme], driver: Driver, interception: Interception) -> None:
    queues = driver.create_queues()
    interception.add(lambda qid, command: Fate(wait=0.5) if qid else None)
    cid = queues.put(READ, nsid=1, prp1=0x2000)
    queues.ring()
    guest.restore(guest.snapshot())
    assert queues.reap() == []
    guest.advance(0.5)
    assert [done.cid for done in queues.reap()] == [cid]


def test_a_stalled_queue_fills_and_goes_on(driver: Driver, interception: Interception) -> None:
    queues = driver.create_queues()
    interception.stall()
    cids = [queues.put(READ, nsid=1, prp1=0x2000) for _ in range(40)]
    queues.ring()
    assert queues.reap() == []
    assert driver.admin.do(AdminOpcode.IDENTIFY, prp1=0x4000, dwords=(1,)).status == 0
    interception.go_on()
    assert [done.cid for done in queues.reap()] == cids
