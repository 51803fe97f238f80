from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import (
    DEADLINE,
    ERROR,
    LARGE,
    NO_REPLY,
    PLAIN,
    REPLY,
    FakeDevice,
    Link,
    Wire,
    drain,
    message,
    served,
    take,
)
from vfio_user import Channel, Client, Command, Disconnected, FramingError, RegionAccess, TimedOut

TRANSFER = 1 << 20
LARGEST = 16 + TRANSFER + 4096


# -- messages in pieces


@given(
    payloads=st.lists(st.binary(max_size=300), min_size=1, max_size=8),
    cuts=st.lists(st.integers(1, 400), min_size=1, max_size=20),
)
def test_messages_survive_being_cut_at_any_byte(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(message(10, payload, id=number) for number, payload in enumerate(payloads))
    ours, theirs = socket.socketpair()
    with closing(Wire(ours)) as wire, closing(Channel(theirs, TRANSFER)) as channel:
        found: list[tuple[int, bytes, int]] = []
        turn = 0
        while stream:
            piece, stream = stream[: cuts[turn % len(cuts)]], stream[cuts[turn % len(cuts)] :]
            wire.raw(piece)
            found += drain(channel)
            turn += 1
        assert found == [(number, payload, 0) for number, payload in enumerate(payloads)]


def test_a_message_sent_byte_by_byte_comes_whole(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    data = message(9, b"0123456789abcdef")
    for at in range(len(data) - 1):
        wire.raw(data[at : at + 1])
        assert channel.receive() is None
    wire.raw(data[-1:])
    assert bytes(take(channel).payload) == b"0123456789abcdef"


def test_a_hundred_pipelined_commands_are_answered_in_order(link: Link) -> None:
    body = RegionAccess(0, PLAIN, 4).pack()
    link.raw(b"".join(message(Command.REGION_READ, body, id=number) for number in range(100)))
    while link.session.service():
        pass
    assert [link.receive().id for _ in range(100)] == list(range(100))


def test_the_budget_bounds_one_turn_and_the_rest_is_still_waiting(link: Link) -> None:
    link.raw(b"".join(message(Command.DEVICE_RESET, id=number) for number in range(5)))
    assert link.session.service(budget=3)
    assert link.session.waiting
    assert link.device.calls.count("reset") == 3
    assert not link.session.service(budget=3)
    assert not link.session.waiting


def test_a_body_of_one_mebibyte_passes_both_ways(device: FakeDevice) -> None:
    data = os.urandom(1 << 20)
    with served(device) as (_, sock), Client(sock) as client:
        client.write(LARGE, 4096, data)
        assert client.read(LARGE, 4096, len(data)) == data
    assert device.memory[LARGE][4096 : 4096 + len(data)] == data


def test_buffers_are_compacted_rather_than_grown(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    for number in range(100):
        wire.raw(message(10, bytes(5000), id=number) + message(10, bytes(5000), id=number)[:4000])
        assert take(channel).id == number
        assert channel.receive() is None
        wire.raw(message(10, bytes(5000), id=number)[4000:])
        assert take(channel).payload == bytes(5000)


def test_a_message_that_the_buffer_ends_within_is_moved_to_its_start(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    first, second = bytes(range(250)) * 400, bytes(range(251)) * 400
    sender = threading.Thread(target=wire.raw, args=(message(10, first) + message(10, second),))
    sender.start()
    deadline = time.monotonic() + DEADLINE
    assert bytes(channel.receive_by(deadline).payload) == first
    assert bytes(channel.receive_by(deadline).payload) == second
    sender.join()


def test_a_closed_channel_keeps_no_buffer() -> None:
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        ours, theirs = socket.socketpair()
        channel = Channel(theirs, 1 << 20)
        ours.close()
        channel.close()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1 << 15
    with pytest.raises(Disconnected):
        channel.receive()


def test_a_kept_payload_outlives_what_comes_after_it(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    wire.raw(message(10, b"first", id=1) + message(10, b"second", id=2)[:10])
    first = take(channel)
    channel.keep()
    wire.raw(message(10, b"second", id=2)[10:])
    assert bytes(take(channel).payload) == b"second"
    assert bytes(first.payload) == b"first"


@pytest.mark.parametrize("flags", [REPLY, 0, NO_REPLY, REPLY | ERROR])
def test_the_header_is_given_as_it_came(ends: tuple[Wire, Channel], flags: int) -> None:
    wire, channel = ends
    wire.raw(struct.pack("<HHIII", 0xFFFF, 99, 16, flags, 71))
    assert take(channel)[:4] == (0xFFFF, 99, flags, 71)


def test_unknown_commands_are_named_by_their_number(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    wire.raw(message(9) + message(99))
    assert [take(channel).name, take(channel).name] == ["REGION_READ", "command 99"]


# -- sizes that cannot be


@pytest.mark.parametrize("size", [0, 1, 15, LARGEST + 1, 0xFFFF_FFFF])
def test_a_size_that_cannot_be_is_answered_and_ends_the_connection(link: Link, size: int) -> None:
    link.raw(struct.pack("<HHIII", 7, Command.REGION_READ, size, 0, 0))
    with pytest.raises(FramingError, match=f"REGION_READ: message size {size}, expected 16 to {LARGEST}"):
        link.session.service()
    answer = link.receive()
    assert answer == (7, Command.REGION_READ, REPLY | ERROR, errno.EINVAL, b"", [])
    link.session.close()
    with pytest.raises((EOFError, ConnectionResetError)):
        link.receive()


@pytest.mark.parametrize("flags", [NO_REPLY, REPLY])
def test_a_size_that_cannot_be_is_not_answered_where_no_answer_is_due(link: Link, flags: int) -> None:
    link.raw(struct.pack("<HHIII", 7, Command.REGION_READ, 3, flags, 0))
    with pytest.raises(FramingError):
        link.session.service()
    assert link.silent


def test_commands_before_a_bad_size_are_served(link: Link) -> None:
    link.raw(message(Command.DEVICE_RESET, id=4) + struct.pack("<HHIII", 5, 9, 3, 0, 0))
    with pytest.raises(FramingError):
        link.session.service()
    assert [link.receive()[:3], link.receive()[:3]] == [(4, 13, REPLY), (5, 9, REPLY | ERROR)]


def test_the_largest_message_is_taken(device: FakeDevice) -> None:
    with served(device) as (_, sock):
        wire = Wire(sock)
        wire.raw(message(99, bytes(LARGEST - 16)))
        assert wire.receive().error == errno.EINVAL  # VERSION must come first; but it was read


# -- ends


def test_a_peer_that_has_left_is_disconnected(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    wire.close()
    with pytest.raises(Disconnected):
        channel.receive()
    with pytest.raises(Disconnected, match="sending DEVICE_RESET"):
        channel.send(1, Command.DEVICE_RESET, 0)


def test_what_came_before_the_peer_left_is_still_given_out(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    wire.raw(message(13))
    wire.close()
    assert take(channel).command == 13
    with pytest.raises(Disconnected):
        channel.receive()


def test_a_reset_connection_is_disconnected(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    channel.send(1, 13, 0)
    wire.close()  # with something unread
    with pytest.raises(Disconnected, match="Connection reset"):
        channel.receive()


def test_a_peer_that_does_not_read_times_out(ends: tuple[Wire, Channel]) -> None:
    _, channel = ends
    with pytest.raises(TimedOut, match="does not read REGION_WRITE"):
        channel.send(1, Command.REGION_WRITE, 0, 0, [bytes(1 << 20)])


def test_nothing_can_follow_a_message_that_was_cut_short(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    with pytest.raises(TimedOut):
        channel.send(1, Command.REGION_WRITE, 0, 0, [bytes(1 << 20)])
    wire.sock.recv(1 << 20)
    with pytest.raises(Disconnected, match="REGION_WRITE was cut short"):
        channel.send(2, Command.DEVICE_RESET, 0)


def test_waiting_for_a_message_times_out(ends: tuple[Wire, Channel]) -> None:
    _, channel = ends
    deadline = time.monotonic() + 0.01
    with pytest.raises(TimedOut):
        channel.receive_by(deadline)
    assert time.monotonic() >= deadline


def test_a_whole_message_in_the_buffer_is_ready(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    before = channel.ready
    wire.raw(message(10) + message(13) + message(10, b"ring") + message(10, b"ring")[:-1])
    seen = [(take(channel).command, channel.ready) for _ in range(3)]
    assert (before, seen) == (False, [(10, True), (13, True), (10, False)])
    assert not channel.empty


def test_a_message_in_more_pieces_than_the_kernel_gathers_is_sent(ends: tuple[Wire, Channel]) -> None:
    wire, channel = ends
    channel.send(1, 10, 0, parts=[b"8 bytes."] * 1024)
    assert wire.receive().payload == b"8 bytes." * 1024


def test_fds_go_with_the_first_byte_even_if_the_message_must_wait(eventfd: Callable[[], int]) -> None:
    ours, theirs = socket.socketpair()
    with closing(Wire(ours)) as wire, closing(Channel(theirs, TRANSFER)) as channel:
        filler = channel_filled(theirs)
        sender = threading.Thread(target=channel.send, args=(1, 5, 1, 0, [bytes(100)], [eventfd()]))
        sender.start()
        wire.sock.settimeout(DEADLINE)
        while filler:
            filler -= len(wire.sock.recv(filler))
        assert len(wire.receive().fds) == 1
        sender.join()


def test_what_has_been_given_out_does_not_count_against_what_may_come_in_during_a_send() -> None:
    """The peer reads only once there is room for what it sends itself."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    with closing(Wire(ours)) as wire, closing(Channel(theirs, 0, timeout=DEADLINE)) as channel:
        for _ in range(3):
            wire.raw(message(5, bytes(4000)))
        take(channel)
        take(channel)
        ours.setblocking(False)
        channel_filled(ours)
        ours.settimeout(DEADLINE)
        size = 16 + (1 << 20)

        def read_once_there_is_room() -> int:
            poll = select.poll()
            poll.register(ours, select.POLLOUT)
            assert poll.poll(DEADLINE * 1000)
            left = size
            while left:
                left -= len(ours.recv(left))
            return left

        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(read_once_there_is_room)
            channel.send(1, 5, 1, 0, [bytes(1 << 20)])
            assert reading.result(DEADLINE) == 0


def test_two_ends_that_both_send_more_than_a_socket_holds_do_not_wait_for_each_other() -> None:
    def exchange(channel: Channel) -> bool:
        channel.send(1, 10, 0, 0, [bytes(TRANSFER)])
        return channel.receive_by(time.monotonic() + DEADLINE).payload == bytes(TRANSFER)

    ours, theirs = socket.socketpair()
    with (
        closing(Channel(ours, TRANSFER)) as one,
        closing(Channel(theirs, TRANSFER)) as other,
        ThreadPoolExecutor(1) as thread,
    ):
        there = thread.submit(exchange, other)
        assert exchange(one)
        assert there.result()


def test_a_peer_that_has_finished_sending_still_gets_a_long_answer() -> None:
    ours, theirs = socket.socketpair()
    with closing(Wire(ours)) as wire, closing(Channel(theirs, TRANSFER)) as channel:
        wire.sock.shutdown(socket.SHUT_WR)
        sender = threading.Thread(target=channel.send, args=(1, 9, 1, 0, [bytes(TRANSFER)]))
        sender.start()
        assert len(wire.receive().payload) == TRANSFER
        sender.join()


def channel_filled(sock: socket.socket) -> int:
    """Fill a non-blocking socket's buffer; how many bytes that took."""
    total = 0
    try:
        while True:
            total += sock.send(bytes(4096))
    except BlockingIOError:
        return total
