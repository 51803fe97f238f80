from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import (
    Link,
    Wire,
    drain,
    fd_count,
    message,
    same_file,
    take,
)
from vfio_user import Channel, Command, FramingError, VfioUserError
from vfio_user.message import close_fds
from vfio_user.received_fds import MOST_FDS_HELD


@pytest.mark.parametrize("at", [0, 1, 15, 16, 17, 30, 31])
def test_fds_may_come_with_any_part_of_their_message(
    ends: tuple[Wire, Channel], eventfd: Callable[[], int], at: int
) -> None:
    wire, channel = ends
    data, fd = message(2, bytes(16)), eventfd()
    if at:
        wire.raw(data[:at])
        assert channel.receive() is None
    wire.raw(data[at : at + 1], [fd])
    if data[at + 1 :]:
        assert channel.receive() is None
        wire.raw(data[at + 1 :])
    received = take(channel)
    assert len(received.fds) == 1
    assert same_file(received.fds[0], fd)
    close_fds(received.fds)


def test_fds_in_several_pieces_of_a_message_come_in_order(
    ends: tuple[Wire, Channel], eventfd: Callable[[], int]
) -> None:
    wire, channel = ends
    data, fds = message(8, bytes(20)), [eventfd() for _ in range(3)]
    for number, fd in enumerate(fds):
        wire.raw(data[number * 12 : number * 12 + 12], [fd])
    received = take(channel)
    assert [same_file(theirs, ours) for theirs, ours in zip(received.fds, fds, strict=True)] == [True] * 3
    close_fds(received.fds)


def test_fds_belong_to_the_message_that_holds_the_last_byte_received_with_them(
    ends: tuple[Wire, Channel], eventfd: Callable[[], int]
) -> None:
    wire, channel = ends
    wire.raw(message(10, id=1))
    wire.raw(message(2, id=2), [eventfd()])
    wire.raw(message(10, id=3))
    assert drain(channel) == [(1, b"", 0), (2, b"", 1), (3, b"", 0)]


def test_fds_that_come_behind_a_whole_message_wait_for_the_rest_of_theirs(
    ends: tuple[Wire, Channel], eventfd: Callable[[], int]
) -> None:
    wire, channel = ends
    second = message(2, bytes(8), id=2)
    wire.raw(message(10, id=1) + second[:20], [eventfd()])
    assert drain(channel) == [(1, b"", 0)]
    wire.raw(second[20:])
    assert drain(channel) == [(2, bytes(8), 1)]


@given(
    parts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=12),
    reads=st.lists(st.booleans(), min_size=1, max_size=12),
)
def test_each_message_gets_just_the_fds_that_were_sent_with_it(parts: list[tuple[int, int]], reads: list[bool]) -> None:
    before = fd_count()
    ours, theirs = socket.socketpair()
    spare = os.eventfd(0)
    with closing(Wire(ours)) as wire, closing(Channel(theirs, 1 << 20)) as channel:
        found: list[tuple[int, bytes, int]] = []
        for number, (length, fds) in enumerate(parts):
            wire.raw(message(2, bytes(length), id=number), [spare] * fds)
            if reads[number % len(reads)]:
                found += drain(channel)
        found += drain(channel)
    os.close(spare)
    assert found == [(number, bytes(length), fds) for number, (length, fds) in enumerate(parts)]
    assert fd_count() == before


def test_received_fds_are_closed_on_exec(ends: tuple[Wire, Channel], eventfd: Callable[[], int]) -> None:
    wire, channel = ends
    wire.raw(message(2), [eventfd()])
    received = take(channel)
    assert fcntl.fcntl(received.fds[0], fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    close_fds(received.fds)


def test_fds_of_a_message_that_never_came_whole_are_closed_with_the_channel(eventfd: Callable[[], int]) -> None:
    fd = eventfd()
    before = fd_count()
    ours, theirs = socket.socketpair()
    with closing(Wire(ours)) as wire, closing(Channel(theirs, 1 << 20)) as channel:
        wire.raw(message(2, bytes(32))[:20], [fd])
        assert channel.receive() is None
    assert fd_count() == before


def test_stray_fds_are_closed_when_their_command_is_done(link: Link, eventfd: Callable[[], int]) -> None:
    fd = eventfd()
    before = fd_count()
    link.ok(Command.DEVICE_RESET, fds=[fd] * 5)
    link.refused(99, fds=[fd] * 5)
    assert fd_count() == before


def test_more_fds_than_max_msg_fds_are_refused(link: Link, eventfd: Callable[[], int]) -> None:
    assert link.refused(Command.DEVICE_RESET, fds=[eventfd()] * 17) == errno.EINVAL
    assert "max_msg_fds" in str(link.device.refusals[0])


def test_as_many_fds_as_max_msg_fds_are_taken(link: Link, eventfd: Callable[[], int]) -> None:
    link.ok(Command.DEVICE_RESET, fds=[eventfd()] * 16)


def test_as_many_fds_as_the_kernel_passes_travel_with_a_message(
    ends: tuple[Wire, Channel], eventfd: Callable[[], int]
) -> None:
    wire, channel = ends
    channel.send(1, 10, 0, fds=[eventfd()] * 253)
    assert len(wire.receive().fds) == 253
    with pytest.raises(VfioUserError, match="254 fds, at most 253 travel with a message"):
        channel.send(1, 10, 0, fds=[eventfd()] * 254)


def test_a_message_whose_two_pieces_bring_all_the_fds_that_they_can_is_taken(
    ends: tuple[Wire, Channel], eventfd: Callable[[], int]
) -> None:
    wire, channel = ends
    fd, data = eventfd(), message(10, bytes(100))
    wire.raw(data[:50], [fd] * 253)
    assert channel.receive() is None
    wire.raw(data[50:], [fd] * 253)
    received = take(channel)
    assert len(received.fds) == MOST_FDS_HELD
    close_fds(received.fds)


def test_fds_without_end_in_one_message_end_the_connection(
    ends: tuple[Wire, Channel], eventfd: Callable[[], int]
) -> None:
    wire, channel = ends
    fd, data = eventfd(), message(10, bytes(100))

    def send_with_fds(at: int) -> None:
        wire.raw(data[at : at + 1], [fd] * 250)
        channel.receive()

    send_with_fds(0)
    send_with_fds(1)
    with pytest.raises(FramingError, match=f"more than {MOST_FDS_HELD} file descriptors"):
        send_with_fds(2)


def test_fds_that_find_no_room_in_the_process_end_the_connection_and_none_leaks(
    ends: tuple[Wire, Channel], eventfd: Callable[[], int]
) -> None:
    wire, channel = ends
    wire.raw(message(2), [eventfd()] * 5)
    limit, before = resource.getrlimit(resource.RLIMIT_NOFILE), fd_count()
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 2, limit[1]))
    try:
        with pytest.raises(FramingError, match="none could be taken"):
            channel.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    channel.close()
    assert fd_count() == before - 1
