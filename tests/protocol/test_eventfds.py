"""Eventfds whose peer has them block, whatever we have set."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from vfio_user.eventfds import SIZE, signal, take

FULL = (1 << 64) - 2

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture(params=[os.EFD_NONBLOCK, 0], ids=["non-blocking", "blocking"])
def fd(request: pytest.FixtureRequest) -> Iterator[int]:
    fd = os.eventfd(0, request.param | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def test_what_was_added_is_taken_once(fd: int) -> None:
    counter = bytearray(SIZE)
    os.eventfd_write(fd, 3)
    os.eventfd_write(fd, 1 << 40)
    assert take(fd, counter) == (1 << 40) + 3
    os.eventfd_write(fd, 2)
    assert take(fd, counter) == 2


def test_nothing_is_taken_where_nothing_was_added_and_the_counter_used_before(fd: int) -> None:
    counter = bytearray(b"\xff" * SIZE)
    assert take(fd, counter) == 0


def test_a_signal_adds_one(fd: int) -> None:
    signal(fd)
    signal(fd)
    assert os.eventfd_read(fd) == 2


@pytest.mark.parametrize("fd", [os.EFD_NONBLOCK], indirect=True)
def test_a_signal_on_a_full_counter_is_one_all_the_same(fd: int) -> None:
    os.eventfd_write(fd, FULL)
    signal(fd)
    assert os.eventfd_read(fd) == FULL
