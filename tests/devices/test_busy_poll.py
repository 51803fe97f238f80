"""Looking before sleeping."""

from __future__ import annotations

import os
import select
import socket
import time

import pytest

from bellwire.bundled.bell import Bell
from bellwire.serve.busy_poll import FIRST, MOST, BusyPoll
from bellwire.serve.worker import Worker
from devices.serving import running
from vfio_user import Client


class Epoll:
    """Ready at the ``at``-th look; a look that may wait ends at once."""

    def __init__(self, at: int, fds: list[int]) -> None:
        self.at = at
        self.fds = fds
        self.looks = 0
        self.slept: list[float | None] = []

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        self.looks += 1
        if timeout != 0:
            self.slept.append(timeout)
        return [(fd, select.EPOLLIN) for fd in self.fds] if self.looks >= self.at or timeout != 0 else []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that goes on by the first of these seconds each time it is read."""
    step, now = [0.0], [0.0]

    def tick() -> float:
        now[0] += step[0]
        return now[0]

    monkeypatch.setattr(time, "monotonic", tick)
    return step


def wait(poll: BusyPoll, epoll: Epoll, timeout: float | None = None) -> list[int]:
    return [fd for fd, _ in poll.wait(epoll, timeout)]  # type: ignore[arg-type]


def test_what_is_there_is_found_without_sleeping() -> None:
    epoll = Epoll(1, [7])
    assert wait(BusyPoll(MOST), epoll) == [7]
    assert epoll.slept == []


def test_at_first_it_looks_once_and_sleeps() -> None:
    epoll = Epoll(99, [7])
    assert wait(BusyPoll(MOST), epoll) == [7]
    assert (epoll.looks, epoll.slept) == (2, [None])


def test_what_comes_soon_after_it_went_to_sleep_makes_it_look_for_longer(clock: list[float]) -> None:
    clock[0] = 1e-6
    poll = BusyPoll(100e-6)
    budgets = []
    for _ in range(5):
        wait(poll, Epoll(10**9, [7]))
        budgets.append(round(poll.budget * 1e6))
    assert budgets == [20, 40, 80, 100, 50]  # the last one came after the longest budget


def test_what_comes_late_makes_it_look_for_less_long_and_then_not_at_all(clock: list[float]) -> None:
    clock[0] = 200e-6
    poll = BusyPoll(100e-6)
    poll.budget = 4 * FIRST
    budgets = []
    for _ in range(4):
        wait(poll, Epoll(10**9, [7]))
        budgets.append(round(poll.budget * 1e6))
    assert budgets == [40, 20, 0, 0]


def test_it_looks_no_longer_than_it_may_wait(clock: list[float]) -> None:
    clock[0] = 1e-6
    poll = BusyPoll(MOST)
    poll.budget = MOST
    epoll = Epoll(10**9, [])
    assert wait(poll, epoll, timeout=10e-6) == []
    assert epoll.looks < 20


def test_what_is_left_of_the_timeout_is_slept(clock: list[float]) -> None:
    clock[0] = 1.0
    epoll = Epoll(10**9, [])
    wait(BusyPoll(MOST), epoll, timeout=10.0)  # the clock is read when it begins, after the look, and for the sleep
    wait(BusyPoll(MOST), epoll, timeout=1.5)
    assert epoll.slept == [8.0], "nothing is left of the second"


@pytest.mark.parametrize(("budget", "looks"), [(0.0, 1), (2.0, 2), (3.5, 4)])
def test_it_looks_until_the_budget_is_spent(clock: list[float], budget: float, looks: int) -> None:
    clock[0] = 1.0
    poll = BusyPoll(MOST)
    poll.budget = budget
    epoll = Epoll(10**9, [])
    wait(poll, epoll)
    assert (epoll.looks, epoll.slept) == (looks + 1, [None])


@pytest.mark.parametrize("most", [1e-9, MOST])
def test_a_window_may_be_of_a_millisecond(most: float) -> None:
    assert BusyPoll(most).budget == 0.0


@pytest.mark.parametrize("most", [0.0, -1.0, 2 * MOST])
def test_there_is_a_longest_window(most: float) -> None:
    with pytest.raises(ValueError, match="busy poll"):
        BusyPoll(most)


def test_a_worker_that_looks_serves_as_one_that_sleeps() -> None:
    ours, theirs = socket.socketpair()
    worker = Worker(Bell(), connection=theirs, busy_poll=MOST)
    with running(worker), Client(ours) as client:
        for number in range(1, 200):
            client.write(0, 0x10, number.to_bytes(4, "little"))
        (bell, *others) = client.io_fds(1)
        os.eventfd_write(bell.fd, 1)
        assert client.read(0, 0x68, 8) == (199).to_bytes(8, "little")
        assert client.read(0, 0x40, 8) == (1).to_bytes(8, "little")
        assert worker.loop.busy_poll is not None
        for fd in {sub.fd for sub in (bell, *others)}:
            os.close(fd)
