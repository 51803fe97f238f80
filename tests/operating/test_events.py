"""The queue of one listener, and messages between the processes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwired.manager.events import MOST, Broadcaster, Subscription
from bellwired.workers import wire
from bellwired.workers.wire import LARGEST_DATAGRAM, Answer, Ask, WireError


async def heard(subscription: Subscription, count: int) -> list[tuple[str, str]]:
    return [(event.device, event.kind) for event in [await subscription.get() for _ in range(count)]]


def test_each_listener_gets_every_event_in_order() -> None:
    async def work() -> None:
        broadcaster = Broadcaster()
        with broadcaster.listening() as one, broadcaster.listening() as two:
            broadcaster.publish("a", "started", {})
            broadcaster.publish("b", "died", {})
            assert await heard(one, 2) == await heard(two, 2) == [("a", "started"), ("b", "died")]

    asyncio.run(work())


def test_who_listens_to_one_device_gets_its_events_and_the_daemons() -> None:
    async def work() -> None:
        broadcaster = Broadcaster()
        with broadcaster.listening("a") as subscription:
            for device in ("b", "a", ""):
                broadcaster.publish(device, "happens", {})
            assert await heard(subscription, 2) == [("a", "happens"), ("", "happens")]

    asyncio.run(work())


def test_who_is_too_slow_loses_the_oldest_and_is_told_how_many_first() -> None:
    async def work() -> None:
        broadcaster = Broadcaster()
        with broadcaster.listening() as subscription:
            for number in range(MOST + 7):
                broadcaster.publish(str(number), "happens", {})
            lost = await subscription.get()
            assert (lost.kind, lost.fields["count"]) == ("lost", 7)
            assert await heard(subscription, 1) == [("7", "happens")]

    asyncio.run(work())


def test_the_hub_knows_whether_anybody_listens() -> None:
    async def work() -> None:
        broadcaster = Broadcaster()
        with broadcaster.listening(), broadcaster.listening():
            assert broadcaster.heard.is_set()
        assert not broadcaster.heard.is_set()

    asyncio.run(work())


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = wire.pair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def test_a_message_arrives_with_its_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    read, write = os.pipe()
    wire.send(theirs, Ask(1, "ping"), [write])
    received = wire.receive(ours)
    assert received is not None
    message, fds = received
    assert message == Ask(1, "ping")
    os.write(fds[0], b"x")
    assert os.read(read, 1) == b"x"
    wire.close([read, write, *fds])


@pytest.mark.parametrize("size", [LARGEST_DATAGRAM, 1_000_000])
def test_a_long_message_arrives_whole(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    ours, theirs = pair
    wire.send(theirs, Answer(1, "x" * size))
    assert wire.receive(ours) == (Answer(1, "x" * size), [])


def test_the_end_is_none_and_nothing_yet_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with pytest.raises(BlockingIOError):
        wire.receive(ours)
    theirs.close()
    assert wire.receive(ours) is None


@given(st.binary(min_size=1, max_size=200))
def test_what_is_no_message_is_refused(data: bytes) -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        theirs.send(data)
        with pytest.raises(WireError):
            wire.receive(ours)


def test_a_message_that_is_cut_off_is_refused_without_a_leak(
    pair: tuple[socket.socket, socket.socket], open_fds: set[int]
) -> None:
    ours, theirs = pair
    fds = [os.dup(0) for _ in range(20)]
    before = set(os.listdir("/proc/self/fd"))
    socket.send_fds(theirs, [b"{}"], fds)
    with pytest.raises(WireError):
        wire.receive(ours)
    assert set(os.listdir("/proc/self/fd")) == before
    wire.close(fds)
