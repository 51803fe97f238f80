"""nvme's jobs that wait for others, what is handed over together, and the sizes of entries of queues."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bellwire import Job
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, Command, IoOpcode
from bellwire.bundled.nvme.status import Status
from bellwire.testing import Guest
from nvme.driver import PAGE, Driver, TestMachine, prps

WRITE = IoOpcode.WRITE
CREATE_CQ, CREATE_SQ = AdminOpcode.CREATE_COMPLETION_QUEUE, AdminOpcode.CREATE_SUBMISSION_QUEUE


def guest_of(driver: Driver) -> Guest[Nvme]:
    assert isinstance(driver.machine, TestMachine)
    return driver.machine.guest


class Begun:
    """Takes the place of the threads: what would run on them."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def submit(self, *jobs: Job) -> None:
        self.jobs += jobs


@pytest.fixture
def begun(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Begun:
    threads = Begun()
    monkeypatch.setattr(guest_of(driver).device.controller.engine, "pool", threads)
    return threads


def background(driver: Driver, *, alone: bool = False) -> tuple[Job, list[Job]]:
    """A job, and what has been done at its end."""
    done: list[Job] = []
    job = Job(print)
    guest_of(driver).device.controller.engine.background(job, done.append, alone=alone)
    return job, done


def test_jobs_begin_at_once_unless_one_must_be_alone(driver: Driver, begun: Begun) -> None:
    engine = guest_of(driver).device.controller.engine
    (first, done), (second, _) = background(driver), background(driver)
    assert begun.jobs == [first, second]
    (alone, _), (behind, _) = background(driver, alone=True), background(driver)
    assert begun.jobs == [first, second], "the last one waits for its turn"
    assert done == []
    engine.finished([first])
    assert done == [first]
    assert begun.jobs == [first, second]
    engine.finished([second])
    assert begun.jobs == [first, second, alone, behind]


def test_two_that_must_be_alone_run_one_after_the_other(driver: Driver, begun: Begun) -> None:
    engine = guest_of(driver).device.controller.engine
    (first, _), (second, _) = background(driver, alone=True), background(driver, alone=True)
    assert begun.jobs == [first]
    engine.finished([first])
    assert begun.jobs == [first, second]


def test_what_must_be_alone_waits_for_io_and_not_for_admin_commands(driver: Driver, begun: Begun) -> None:
    engine = guest_of(driver).device.controller.engine
    queues = guest_of(driver).device.controller.queues
    command = Command.unpack(bytes(64))
    engine._begin(Job(print), queues.submissions[0], bytes(64), command)
    first, _ = background(driver, alone=True)
    assert begun.jobs[1:] == [first]
    engine.finished([first])
    driver_queue = queues.submissions[1]
    driver_queue.create(0x8000, 4, 1)
    queues.completions[1].create(0x9000, 4, 1, False)
    engine._begin(io := Job(print), driver_queue, bytes(64), command)
    second, _ = background(driver, alone=True)
    assert begun.jobs[2:] == [io]
    engine.finished([io])
    assert begun.jobs[2:] == [io, second]


@pytest.mark.parametrize("how", ["clear", "restored"])
def test_jobs_that_the_threads_have_dropped_keep_nobody_waiting(driver: Driver, begun: Begun, how: str) -> None:
    engine = guest_of(driver).device.controller.engine
    background(driver)
    background(driver, alone=True)
    if how == "clear":
        engine.clear()
    else:
        engine.restored()
    assert not engine.busy
    begun.jobs.clear()
    job, _ = background(driver, alone=True)
    assert begun.jobs == [job]


def test_it_is_busy_while_commands_are_under_way(driver: Driver, begun: Begun) -> None:
    engine = guest_of(driver).device.controller.engine
    background(driver)
    busy = [engine.busy]  # no command waits for that
    engine._begin(job := Job(print), engine._queues.admin, bytes(64), Command.unpack(bytes(64)))
    busy.append(engine.busy)
    engine.finished([job])
    assert [*busy, engine.busy] == [False, True, False]


@pytest.mark.unsaved("has put another pool into the controller, which cannot be restored")
def test_writes_of_a_batch_are_handed_over_together(on_image: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[int] = []
    queues = on_image.create_queues()
    threads = SimpleNamespace(submit=lambda *jobs: handed.append(len(jobs)))
    monkeypatch.setattr(guest_of(on_image).device.controller.engine, "pool", threads)
    page = on_image.allocate(PAGE)
    for number in (3, 1):
        for block in range(number):
            queues.put(WRITE, nsid=1, prp1=page, dwords=(block,))
        queues.ring()
    assert handed == [3, 1]


@pytest.mark.parametrize(
    ("configuration", "opcode", "code"),
    [
        (0x46_0001, CREATE_CQ, Status.SUCCESS),
        (0x45_0001, CREATE_CQ, Status.SUCCESS),
        (0x36_0001, CREATE_CQ, Status.INVALID_QUEUE_SIZE),
        (0x56_0001, CREATE_CQ, Status.INVALID_QUEUE_SIZE),
        (0x46_0001, CREATE_SQ, Status.SUCCESS),
        (0x36_0001, CREATE_SQ, Status.SUCCESS),
        (0x45_0001, CREATE_SQ, Status.INVALID_QUEUE_SIZE),
        (0x47_0001, CREATE_SQ, Status.INVALID_QUEUE_SIZE),
    ],
)
def test_a_queue_is_made_only_for_entries_of_the_size_that_there_is(
    driver: Driver, configuration: int, opcode: AdminOpcode, code: Status
) -> None:
    assert driver.admin.do(CREATE_CQ, prp1=0x2000, dwords=(1 << 16 | 1, 3)).status == 0
    guest_of(driver).device.cc = configuration
    assert driver.admin.do(opcode, prp1=0x1000, dwords=(1 << 16 | 2, 1 << 16 | 1)).code == code


@pytest.mark.parametrize("kibibytes", [16, 64])
def test_data_in_memory_is_left_to_the_next_turn_and_not_to_a_thread(
    guest: Guest[Nvme], driver: Driver, kibibytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another turn of the loop costs less than a thread."""
    jobs: list[object] = []
    pool = guest.device.controller.engine.pool
    usual = pool.submit

    def submit(*some: Job) -> None:
        jobs.extend(some)
        usual(*some)

    monkeypatch.setattr(pool, "submit", submit)
    queues = driver.create_queues(size=64)
    count, blocks = 3072 // kibibytes if kibibytes == 64 else 60, 2 * kibibytes
    page = driver.allocate(kibibytes << 10)
    pages = range(page, page + (kibibytes << 10), PAGE)
    cids = []
    for number in range(count):
        prp1, prp2 = prps(driver, pages, 0)
        cids.append(queues.put(IoOpcode.READ, nsid=1, prp1=prp1, prp2=prp2, dwords=(number * blocks, 0, blocks - 1)))
    queues.ring()
    assert [done.status for done in queues.wait(*cids)] == [0] * count
    assert jobs == []
