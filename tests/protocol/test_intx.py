"""INTx is a level: signalled once, held until the client says that it was handled, and again while it lasts."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from protocol.backend import Link, fd_count
from protocol.set_irqs import BOOL, EVENTFD, INTX, MASK, NONE, SET, TRIGGER, UNMASK, count, request


@pytest.fixture
def line(link: Link, eventfd: Callable[[], int]) -> int:
    """The eventfd that INTx triggers."""
    fd = eventfd()
    link.ok(SET, request(EVENTFD | TRIGGER, INTX), fds=[fd])
    return fd


@pytest.fixture
def handled(link: Link, line: int, eventfd: Callable[[], int]) -> int:
    """The eventfd by which the client says that the guest has handled INTx."""
    fd = eventfd()
    link.ok(SET, request(EVENTFD | UNMASK, INTX), fds=[fd])
    return fd


def acknowledge(link: Link, fd: int) -> None:
    os.eventfd_write(fd, 1)
    link.device.run_watched()


def test_an_asserted_line_is_signalled_once(link: Link, line: int) -> None:
    for _ in range(3):
        link.session.irqs.set_level(True)
    assert count(line) == 1


def test_a_line_asserted_before_the_eventfd_came_is_signalled_then(link: Link, eventfd: Callable[[], int]) -> None:
    fd = eventfd()
    link.session.irqs.set_level(True)
    link.ok(SET, request(EVENTFD | TRIGGER, INTX), fds=[fd])
    assert count(fd) == 1


def test_a_line_that_is_still_asserted_is_signalled_again_after_it_was_handled(
    link: Link, line: int, handled: int
) -> None:
    link.session.irqs.set_level(True)
    assert count(line) == 1
    acknowledge(link, handled)
    assert count(line) == 1


@pytest.mark.usefixtures("impatient")
def test_an_eventfd_that_blocks_and_says_nothing_holds_nobody_up(link: Link, line: int, handled: int) -> None:
    link.session.irqs.set_level(True)
    assert count(line) == 1
    os.set_blocking(handled, True)
    (look,) = link.device.watched.values()
    look()
    assert count(line) == 0
    acknowledge(link, handled)
    assert count(line) == 1


def test_a_line_that_was_lowered_is_not_signalled_again(link: Link, line: int, handled: int) -> None:
    link.session.irqs.set_level(True)
    link.session.irqs.set_level(False)
    assert count(line) == 1
    acknowledge(link, handled)
    assert count(line) == 0


def test_a_line_raised_anew_waits_until_the_first_was_handled(link: Link, line: int, handled: int) -> None:
    for asserted in (True, False, True):
        link.session.irqs.set_level(asserted)
    assert count(line) == 1
    acknowledge(link, handled)
    assert count(line) == 1


def test_where_nobody_says_handled_each_rising_edge_is_signalled(link: Link, line: int) -> None:
    for asserted in (True, False, True, True):
        link.session.irqs.set_level(asserted)
    assert count(line) == 2


@pytest.mark.parametrize("flags", [NONE | UNMASK, BOOL | UNMASK])
def test_an_unmask_message_says_handled_too(link: Link, line: int, flags: int) -> None:
    link.session.irqs.set_level(True)
    assert count(line) == 1
    link.ok(SET, request(flags, INTX, data=b"\1" if flags & BOOL else b""))
    assert count(line) == 1


def test_a_masked_line_is_signalled_when_it_is_unmasked(link: Link, line: int) -> None:
    link.ok(SET, request(NONE | MASK, INTX))
    link.session.irqs.set_level(True)
    assert count(line) == 0
    link.ok(SET, request(NONE | UNMASK, INTX))
    assert count(line) == 1


def test_a_loop_back_of_a_masked_line_is_delivered_at_the_unmask(link: Link, line: int) -> None:
    link.ok(SET, request(NONE | MASK, INTX))
    link.ok(SET, request(NONE | TRIGGER, INTX))
    assert count(line) == 0
    link.ok(SET, request(NONE | UNMASK, INTX))
    assert count(line) == 1
    link.ok(SET, request(NONE | UNMASK, INTX))
    assert count(line) == 0


def test_a_line_can_be_masked_by_eventfd(link: Link, line: int, handled: int, eventfd: Callable[[], int]) -> None:
    fd = eventfd()
    link.ok(SET, request(EVENTFD | MASK, INTX), fds=[fd])
    acknowledge(link, fd)
    link.session.irqs.set_level(True)
    assert count(line) == 0
    acknowledge(link, handled)
    assert count(line) == 1


def test_the_eventfd_for_handled_can_be_replaced(
    link: Link, line: int, handled: int, eventfd: Callable[[], int]
) -> None:
    fresh = eventfd()
    link.ok(SET, request(EVENTFD | UNMASK, INTX), fds=[fresh])
    link.session.irqs.set_level(True)
    acknowledge(link, handled)
    assert count(line) == 1
    acknowledge(link, fresh)
    assert count(line) == 1


def test_the_eventfd_for_handled_can_be_taken_back(link: Link, line: int, handled: int) -> None:
    link.ok(SET, request(EVENTFD | UNMASK, INTX))
    assert link.device.watched == {}
    link.session.irqs.set_level(True)
    acknowledge(link, handled)
    assert count(line) == 1


def test_a_wake_up_for_an_eventfd_that_was_just_taken_back_does_nothing(link: Link, line: int, handled: int) -> None:
    link.session.irqs.set_level(True)
    os.eventfd_write(handled, 1)
    (callback,) = link.device.watched.values()
    link.ok(SET, request(NONE | TRIGGER, INTX, count=0))
    callback()
    assert count(line) == 1


def test_a_wake_up_whose_count_somebody_has_read_does_nothing(link: Link, line: int, handled: int) -> None:
    link.session.irqs.set_level(True)
    (callback,) = link.device.watched.values()
    callback()
    assert count(line) == 1


def test_disabling_intx_gives_all_of_its_eventfds_back(link: Link, eventfd: Callable[[], int]) -> None:
    fds = [eventfd() for _ in range(3)]
    before = fd_count()
    for action, fd in zip((TRIGGER, MASK, UNMASK), fds, strict=True):
        link.ok(SET, request(EVENTFD | action, INTX), fds=[fd])
    link.ok(SET, request(NONE | TRIGGER, INTX, count=0))
    assert link.device.watched == {}
    assert fd_count() == before


def test_a_line_that_is_still_asserted_is_signalled_to_the_next_eventfd(
    link: Link, line: int, handled: int, eventfd: Callable[[], int]
) -> None:
    link.session.irqs.set_level(True)
    link.ok(SET, request(NONE | TRIGGER, INTX, count=0))
    fresh = eventfd()
    link.ok(SET, request(EVENTFD | TRIGGER, INTX), fds=[fresh])
    assert count(fresh) == 1


def test_what_qemu_does_at_start_up(link: Link, eventfd: Callable[[], int]) -> None:
    line, handled = eventfd(), eventfd()
    link.ok(SET, request(0x24, INTX), fds=[line])
    link.ok(SET, request(0x09, INTX))
    link.ok(SET, request(0x14, INTX), fds=[handled])
    link.session.irqs.set_level(True)
    assert count(line) == 0
    link.ok(SET, request(0x11, INTX))
    assert count(line) == 1
