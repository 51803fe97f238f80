"""How long the worker's loop sleeps, what wakes it, and which timers then run."""

from __future__ import annotations

import select
from collections.abc import Iterator

import pytest

from bellwire.serve.busy_poll import BusyPoll
from bellwire.serve.loop import Deadline, Loop


class Epoll:
    """Notes how long it was asked to wait, and has nothing."""

    def __init__(self) -> None:
        self.asked: list[float | None] = []
        self.ready: list[tuple[int, int]] = []

    def poll(self, timeout: float | None = None) -> list[tuple[int, int]]:
        self.asked.append(timeout)
        return self.ready


class Bench:
    """A loop with a clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0
        self.loop = Loop(lambda: self.now)
        self.usual, self.epoll = self.loop._epoll, Epoll()
        self.loop._epoll = self.epoll  # type: ignore[assignment]
        self.ran: list[object] = []

    def after(self, seconds: float, what: object = None) -> None:
        self.loop.after(seconds, lambda: self.ran.append(what))


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.loop._epoll = bench.usual
    bench.loop.close()


@pytest.mark.parametrize(
    ("timers", "timeout", "slept"),
    [
        ([], None, None),
        ([], 2.0, 2.0),
        ([7.0], None, 7.0),
        ([7.0], 2.0, 2.0),
        ([1.5, 7.0], 2.0, 1.5),
        ([3599.0], None, 3599.0),
        ([1e9], None, 3600.0),
        ([1e9], 5000.0, 3600.0),
        ([0.0], None, 0),
        ([-5.0], 2.0, 0),
    ],
)
def test_a_sleep_ends_with_the_next_timer_and_within_an_hour(
    bench: Bench, timers: list[float], timeout: float | None, slept: float | None
) -> None:
    for seconds in timers:
        bench.after(seconds)
    bench.loop.wait(timeout)
    assert bench.epoll.asked == [pytest.approx(slept) if slept else slept]


def test_a_timer_that_is_due_makes_the_list_differ_from_that_of_a_message(bench: Bench) -> None:
    bench.epoll.ready = [(5, select.EPOLLIN)]
    assert bench.loop.sleeper()() == [(5, select.EPOLLIN)]
    assert bench.loop.sleeper() == bench.epoll.poll, "without timers nothing lies between"
    bench.after(0)
    assert bench.loop.sleeper()() == [(5, select.EPOLLIN), (-1, 0)]
    assert bench.loop.look() == [(5, select.EPOLLIN)]
    assert bench.epoll.asked == [None, 0, 0]


def test_timers_run_when_they_are_due_in_order_each_once(bench: Bench) -> None:
    for seconds, what in ((2.0, "b"), (1.0, "a"), (2.0, "c"), (3.0, "d")):
        bench.after(seconds, what)
    seen = []
    for now in (100.99, 101.0, 102.0, 102.0, 103.5):
        bench.now = now
        bench.loop.run_timers()
        seen.append("".join(map(str, bench.ran)))
    assert seen == ["", "a", "abc", "abc", "abcd"]
    assert bench.loop.sleeper() == bench.epoll.poll


def test_a_timer_that_a_timer_cancels_does_not_run(bench: Bench) -> None:
    timers: list[Deadline] = []

    def cancel() -> None:
        timers[0].cancel()

    bench.loop.after(0, cancel)
    timers.append(bench.loop.after(0, lambda: bench.ran.append("no")))
    bench.loop.run_timers()
    assert bench.ran == []


@pytest.mark.parametrize("live", [0, 200, 300])
def test_cancelled_timers_are_dropped_when_they_are_many(bench: Bench, live: int) -> None:
    for number in range(live):
        bench.after(10.0, number)
    for _ in range(2000):
        bench.loop.after(5.0, print).cancel()
        assert len(bench.loop._timers) <= max(256, 2 * live + 1) + 1
    bench.now += 10
    bench.loop.run_timers()
    assert bench.ran == list(range(live))


def test_busy_polling_is_asked_unless_there_is_nothing_to_wait_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float | None] = []

    def wait(_: object, epoll: object, timeout: float | None) -> list[tuple[int, int]]:
        assert epoll is bench.epoll
        asked.append(timeout)
        return []

    monkeypatch.setattr(BusyPoll, "wait", wait)
    bench.loop.busy_poll = BusyPoll(1e-3)
    bench.loop.sleeper()()
    bench.loop.wait(0)
    bench.loop.wait(3.0)
    bench.after(2.0)
    bench.loop.wait(3.0)
    assert asked == [None, 3.0, pytest.approx(2.0)]
    assert bench.epoll.asked == [0]


def test_only_what_is_watched_still_is_called(bench: Bench) -> None:
    bench.loop._epoll = bench.usual
    called: list[int] = []

    def end_the_watch_of_4() -> None:
        del bench.loop._callbacks[4]

    bench.loop._callbacks |= {3: end_the_watch_of_4, 4: lambda: called.append(4), 5: None}
    bench.loop.run([3, 4, 5, 6])
    assert called == []
