"""The worker's loop."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from bellwire.serve.loop import FEW_TIMERS, Deadline, Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def turn(loop: Loop, timeout: float = 5.0) -> None:
    loop.run(loop.wait(timeout))
    loop.run_timers()


def test_a_readable_fd_calls_back(loop: Loop) -> None:
    heard: list[int] = []
    fd = os.eventfd(0)
    loop.watch(fd, lambda: heard.append(os.eventfd_read(fd)))
    os.eventfd_write(fd, 3)
    turn(loop)
    loop.unwatch(fd)
    os.close(fd)
    assert heard == [3]


def test_timers_run_in_order(loop: Loop) -> None:
    heard: list[int] = []
    loop.after(0.002, lambda: heard.append(2))
    loop.after(0.001, lambda: heard.append(1))
    while len(heard) < 2:
        turn(loop)
    assert heard == [1, 2]


def test_a_timer_that_sets_another_for_now_does_not_starve_the_loop(loop: Loop) -> None:
    heard: list[int] = []

    def again() -> None:
        heard.append(1)
        loop.after(0, again)

    loop.after(0, again)
    turn(loop)
    assert len(heard) == 1


def test_timers_that_are_set_anew_again_and_again_do_not_pile_up(loop: Loop) -> None:
    heard: list[str] = []
    loop.after(0, lambda: heard.append("kept"))
    for _ in range(10 * FEW_TIMERS):
        loop.after(3600, lambda: None).cancel()
    assert sum(isinstance(each, Deadline) for each in gc.get_objects()) <= FEW_TIMERS
    turn(loop)
    assert heard == ["kept"]


def test_timers_may_be_ages_away(loop: Loop) -> None:
    heard: list[int] = []
    for seconds in (1e10, float("inf")):
        loop.after(seconds, lambda: heard.append(2))
        loop.wake()
        loop.run(loop.wait())
    loop.after(0, lambda: heard.append(1))
    turn(loop)
    assert heard == [1]


def test_a_cancelled_timer_does_not_run(loop: Loop) -> None:
    heard: list[int] = []
    loop.after(0, lambda: heard.append(1)).cancel()
    turn(loop)
    assert heard == []


def test_background_work_runs_elsewhere_and_ends_here(loop: Loop) -> None:
    heard: list[object] = []

    def done(future: Future[int]) -> None:
        heard.extend([future.result(), threading.get_ident()])

    loop.background(threading.get_ident, done)
    while not heard:
        turn(loop)
    assert heard[0] != threading.get_ident()
    assert heard[1] == threading.get_ident()


def test_stop_ends_a_wait_from_another_thread(loop: Loop) -> None:
    thread = threading.Thread(target=loop.stop)
    thread.start()
    turn(loop)
    thread.join()
    assert loop.stopping


def test_waking_a_loop_that_is_being_closed_touches_no_other_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    close, fd = os.close, loop._wake
    reused = os.eventfd(0, os.EFD_NONBLOCK)
    waker = threading.Thread(target=loop.wake)

    def close_and_reuse(fd: int) -> None:
        os.dup2(reused, fd)  # what closing it, and opening another, comes to
        waker.start()
        waker.join(0.05)

    monkeypatch.setattr(os, "close", close_and_reuse)
    loop.close()
    waker.join()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(reused)
    close(fd)
    close(reused)
