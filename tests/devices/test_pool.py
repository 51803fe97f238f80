"""Threads for jobs: results in batches, on the loop's thread."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from bellwire.model.jobs import Job
from bellwire.serve.loop import Loop
from bellwire.serve.threads import Threads

PATIENCE = 30.0


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def turn(loop: Loop) -> None:
    loop.run(loop.wait(PATIENCE))


def test_a_job_runs_elsewhere_and_ends_here(loop: Loop) -> None:
    seen: list[int] = []
    done: list[tuple[Job, int]] = []
    pool = Threads(loop, 2, lambda jobs: done.extend((job, threading.get_ident()) for job in jobs))
    pool.submit(Job(lambda: seen.append(threading.get_ident()), tag="first"))
    while not done:
        turn(loop)
    pool.close()
    assert (done[0][0].tag, done[0][1]) == ("first", threading.get_ident())
    assert seen[0] != threading.get_ident()


def test_what_finishes_while_the_loop_is_busy_comes_in_one_batch(loop: Loop) -> None:
    batches: list[int] = []
    pool = Threads(loop, 1, lambda jobs: batches.append(len(jobs)))
    last = threading.Event()
    for _ in range(9):
        pool.submit(Job(lambda: None))
    pool.submit(Job(last.set))
    assert last.wait(PATIENCE)
    while sum(batches) < 10:
        turn(loop)
    pool.close()
    assert batches[0] >= 9
    assert len(batches) <= 2


def test_jobs_that_are_submitted_together_run_in_order_on_one_thread(loop: Loop) -> None:
    seen: list[tuple[int, int]] = []
    done: list[Job] = []
    pool = Threads(loop, 4, done.extend)
    pool.submit(*(Job(lambda number: seen.append((number, threading.get_ident())), n, tag=n) for n in range(9)))
    while len(done) < 9:
        turn(loop)
    pool.close()
    assert [number for number, _ in seen] == [job.tag for job in done] == list(range(9))
    assert len({thread for _, thread in seen}) == 1


@pytest.mark.parametrize(("work", "kind"), [(int, ValueError), (sys.exit, RuntimeError)])
def test_what_a_job_raises_is_in_it(loop: Loop, work: Callable[[str], object], kind: type[Exception]) -> None:
    done: list[Job] = []
    pool = Threads(loop, 1, done.extend)
    pool.submit(Job(work, "no number"))
    while not done:
        turn(loop)
    pool.close()
    assert isinstance(done[0].error, kind)


def test_settling_waits_for_what_runs_and_drops_the_rest(loop: Loop) -> None:
    started, go_on = threading.Event(), threading.Event()
    ran: list[str] = []
    done: list[Job] = []
    pool = Threads(loop, 1, done.extend)

    def slow() -> None:
        started.set()
        assert go_on.wait(PATIENCE)
        ran.append("slow")

    pool.submit(Job(slow), Job(ran.append, "dropped"))
    pool.submit(Job(ran.append, "dropped too"))
    assert started.wait(PATIENCE)
    releaser = threading.Timer(0.01, go_on.set)
    releaser.start()
    pool.settle()
    releaser.join()
    assert ran == ["slow"]
    loop.run(loop.wait(0))
    assert done == []
    pool.close()


def test_settling_between_the_wake_up_and_the_call_leaves_nothing_to_do(loop: Loop) -> None:
    done: list[Job] = []
    pool = Threads(loop, 1, done.extend)
    pool.submit(Job(lambda: None))
    ready = loop.wait(PATIENCE)
    pool.settle()
    loop.run(ready)
    assert done == []
    pool.submit(Job(lambda: None, tag="next"))
    while not done:
        turn(loop)
    pool.close()
    assert [job.tag for job in done] == ["next"]


def test_finishing_waits_for_all_and_tells_of_them_later(loop: Loop) -> None:
    done: list[Job] = []
    pool = Threads(loop, 2, done.extend)
    assert not pool.finish()
    ran: list[int] = []
    for number in range(20):
        pool.submit(Job(ran.append, number))
    assert pool.finish()
    assert sorted(ran) == list(range(20))
    assert done == []
    assert pool.finish()
    turn(loop)
    assert len(done) == 20
    assert not pool.finish()
    loop.run(loop.wait(0))
    assert len(done) == 20
    pool.close()


def test_threads_start_with_need_and_end_with_close(loop: Loop) -> None:
    before = threading.active_count()
    pool = Threads(loop, 4, lambda jobs: None)
    assert threading.active_count() == before
    pool.submit(Job(lambda: None))
    assert threading.active_count() <= before + 1
    pool.close()
    pool.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [1, 3])
def test_there_are_no_more_threads_than_asked_for(loop: Loop, count: int) -> None:
    before, hold = threading.active_count(), threading.Event()
    done: list[Job] = []
    pool = Threads(loop, count, done.extend)
    for _ in range(2 * count + 2):
        pool.submit(Job(hold.wait, PATIENCE))
    assert threading.active_count() == before + count
    hold.set()
    while len(done) < 2 * count + 2:
        turn(loop)
    pool.close()
    assert threading.active_count() == before


def test_a_pool_that_is_closed_is_not_watched_any_more() -> None:
    watched: list[int] = []

    class Noting(Loop):
        def watch(self, fd: int, callback: Callable[..., None] | None = None) -> None:
            watched.append(fd)
            super().watch(fd, callback)

        def unwatch(self, fd: int) -> None:
            watched.remove(fd)
            super().unwatch(fd)

    loop = Noting()
    before = list(watched)
    pool = Threads(loop, 1, lambda _: None)
    assert len(watched) == len(before) + 1
    pool.close()
    assert watched == before
    pool.close()
    loop.close()


def test_a_closed_pool_leaves_no_descriptor(loop: Loop) -> None:
    before = set(os.listdir("/proc/self/fd"))
    pool = Threads(loop, 1, print)
    for _ in range(2):
        pool.close()
    assert set(os.listdir("/proc/self/fd")) == before
