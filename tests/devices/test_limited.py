"""Logging at a limited rate: no guest and no client can choose how much of it there is."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator

import pytest

from bellwire.model.limited import BURST, INTERVAL, MOST, LimitedLog, shape
from devices.serving import Probe, served, write
from vfio_user import RemoteError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limited(clock: Clock, caplog: pytest.LogCaptureFixture) -> Iterator[LimitedLog]:
    with caplog.at_level(logging.INFO, "limited"):
        yield LimitedLog(logging.getLogger("limited"), clock)


def test_a_kind_is_logged_a_few_times_and_counted_after_that(
    limited: LimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(BURST + 7):
        limited.warning("same", "once")
    assert caplog.messages == ["once"] * BURST
    clock.now = INTERVAL
    limited.warning("same", "again")
    assert caplog.messages[BURST:] == ["7 more like the last were not logged", "again"]


def test_kinds_without_end_are_not_logged_without_end(
    limited: LimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10 * MOST):
        limited.warning(number, "another kind")
    assert len(caplog.messages) == MOST
    clock.now = INTERVAL
    limited.warning("same", "again")
    assert caplog.messages[MOST:] == [f"{9 * MOST} more like the last were not logged", "again"]


def test_a_failure_has_its_traceback_once(limited: LimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(BURST + 1):
        limited.failure("kind", ValueError("why"), "failed")
    assert [record.exc_info is not None for record in caplog.records] == [True] + [False] * (BURST - 1)


def test_of_256_kinds_the_oldest_is_forgotten(limited: LimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    for number in (*range(256), 0, 1):
        limited.failure(number, ValueError("why"), "failed")
    assert all(record.exc_info for record in caplog.records[:256])
    assert caplog.records[256].exc_info is None, "it is still known"
    limited.failure(256, ValueError("why"), "failed")  # 2 is the oldest now
    caplog.clear()
    limited.failure(3, ValueError("why"), "failed")
    limited.failure(2, ValueError("why"), "failed")
    assert [record.exc_info is None for record in caplog.records] == [True, False]


def test_the_last_moment_of_an_interval_belongs_to_the_next(
    limited: LimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        limited.warning("same", "once")
    clock.now = 9.999
    limited.warning("same", "no more")
    clock.now = 10.0
    limited.warning("same", "again")
    assert caplog.messages == ["once"] * 5 + ["1 more like the last were not logged", "again"]


def test_a_kind_that_stays_within_its_limit_is_not_counted_aloud(
    limited: LimitedLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        limited.warning("same", "once")
    clock.now = 10.0
    limited.warning("same", "again")
    assert caplog.messages == ["once"] * 5 + ["again"]


def test_errors_that_differ_in_their_numbers_are_of_one_kind() -> None:
    one, other = (ValueError(f"{size} bytes at {at:#x}: none") for size, at in ((4, 0x1000), (77, 0xFEDC)))
    assert shape(one) == shape(other) == "# bytes at #: none"


def test_neither_a_client_nor_a_guest_floods_the_log_by_numbers_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    with served(Probe()) as client, caplog.at_level(logging.WARNING):
        for number in range(100):
            with pytest.raises(RemoteError):
                client.dma_map(number << 12, 4096, read=False, write=False)
            with pytest.raises(RemoteError):
                write(client, Probe.fetch.offset, number << 12, size=8)
    assert caplog.text.count("allow neither reading nor writing") == caplog.text.count("mapped nothing there") == BURST


def test_what_is_logged_is_told_too_and_what_is_not_is_not(limited: LimitedLog) -> None:
    told: list[str] = []
    limited.tell = told.append
    for _ in range(BURST + 3):
        limited.failure("kind", ValueError("x"), "it failed with %d", 5)
    assert told == ["it failed with 5"] * BURST
    limited.warning("other", "beware of %s", "dogs")
    assert told[BURST:] == ["beware of dogs"]


def test_who_keeps_a_record_does_not_keep_what_it_names(limited: LimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    class Named:
        def __str__(self) -> str:
            return "a queue"

    named = Named()
    gone = weakref.ref(named)
    limited.warning("kind", "%s is full", named)
    limited.error("%s has failed", named)
    del named
    assert caplog.messages == ["a queue is full", "a queue has failed"]
    assert gone() is None
