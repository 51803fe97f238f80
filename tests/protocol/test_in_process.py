"""A client and a session in one thread, without a socket: the same calls, and no waiting."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

from protocol.backend import MAPPED, PLAIN, FakeDevice, fd_count
from protocol.guest import GUEST, GuestMemory
from protocol.set_irqs import MSIX, count
from vfio_user import DRAFT_2021, Channel, Disconnected, IoEventFd, RegionWrite, RemoteError, Stalemate, TimedOut
from vfio_user.in_process import End, JoinedChannel, joined


def test_calls_are_answered_in_this_thread(
    device: FakeDevice, eventfd: Callable[[], int], memfd: Callable[[int], int]
) -> None:
    device.subs[PLAIN] = [IoEventFd(0, 4, eventfd())]
    fd, threads = eventfd(), threading.active_count()
    with joined(device) as (client, session):
        client.write(PLAIN, 0, b"abcd", posted=True)
        client.write(PLAIN, 4, os.urandom(4))
        assert client.read(PLAIN, 0, 4) == b"abcd"
        assert client.write_multi([RegionWrite(PLAIN, 16, b"ij")]) == 1
        region = client.region_info(MAPPED)
        (sub,) = client.io_fds(PLAIN)
        assert region.fd is not None
        for received in (region.fd, sub.fd):
            os.close(received)
        client.trigger_eventfds(MSIX, 0, [fd])
        session.irqs.trigger(MSIX, 0)
        assert count(fd) == 1
        client.dma_map(0x1000, 4096, memfd(4096))
        assert len(session.dma) == 1
        with pytest.raises(RemoteError):
            client.read(8, 0, 4)
        assert threading.active_count() == threads


def test_dma_by_message_is_answered_within_the_access_and_outside(device: FakeDevice) -> None:
    memory = GuestMemory(1 << 20)
    with joined(device, memory=memory) as (client, session):
        device.on_read = lambda *_: session.dma_read(GUEST, 8)
        assert client.read(PLAIN, 0, 8) == memory.data[:8]
        assert session.dma_read(GUEST, 1 << 20) == memory.data
        session.dma_write(GUEST, b"written")
        assert memory.data[:7] == b"written"


def test_a_twin_socket_is_refused(device: FakeDevice) -> None:
    before = fd_count()
    with pytest.raises(ValueError, match="twin=True: its thread"), joined(device, twin=True):
        pass
    assert fd_count() == before


def test_the_draft_is_spoken_too(device: FakeDevice) -> None:
    raised: list[int] = []
    options = {"dialect": DRAFT_2021}
    with joined(device, server=options, dialect=DRAFT_2021, interrupt=raised.append) as (client, session):
        session.irqs.trigger(MSIX, 2)
        client.reset()
        assert raised == [2]


def test_a_wait_for_nothing_ends_at_once(device: FakeDevice) -> None:
    with joined(device) as (client, session):
        before = time.monotonic()
        deaf(session._channel)
        with pytest.raises(TimedOut):
            session.dma_read(GUEST, 8)
        deaf(client._channel)
        with pytest.raises(TimedOut):
            client.reset()
        assert time.monotonic() - before < 4  # each would wait for 5 s


def deaf(channel: Channel) -> None:
    """The far end does nothing any more."""
    assert isinstance(channel, JoinedChannel)
    channel.stream.work = lambda: None


def test_a_reply_is_kept_while_the_server_goes_on_to_ask_for_memory(device: FakeDevice) -> None:
    memory = GuestMemory(4096)
    found: list[bytes] = []

    def serve_and_ask() -> None:
        session.service()
        found.append(session.dma_read(GUEST, 8))

    with joined(device, memory=memory) as (client, session):
        assert isinstance(client._channel, JoinedChannel)
        client._channel.stream.work = serve_and_ask
        assert client.read(PLAIN, 0, 4) == device.memory[PLAIN][:4]
        assert found == [memory.data[:8]]


def test_a_client_that_answers_nothing_in_an_access_is_a_stalemate(device: FakeDevice) -> None:
    errors: list[Exception] = []

    def hook(*_: object) -> bytes:
        try:
            return session.dma_read(GUEST, 8)
        except Stalemate as error:
            errors.append(error)
            raise

    with joined(device, memory=GuestMemory(4096)) as (client, session):
        deaf(session._channel)
        device.on_read = hook
        with pytest.raises(RemoteError):
            client.read(PLAIN, 0, 8)
        assert len(errors) == 1


def test_each_end_learns_that_the_other_has_gone(device: FakeDevice) -> None:
    with joined(device) as (client, session):
        client.close()
        with pytest.raises(Disconnected):
            session.service()
    with joined(device) as (client, session):
        session.close()
        with pytest.raises(Disconnected):
            client.reset()


def test_nothing_stays_of_the_two(device: FakeDevice, memfd: Callable[[int], int]) -> None:
    fd = memfd(4096)
    before = fd_count()
    with joined(device) as (client, _):
        client._channel.send(1, 2, 0x10, 0, [b"not served"], [fd])
    assert fd_count() == before


def test_a_stream_is_cut_where_other_descriptors_begin(memfd: Callable[[int], int]) -> None:
    one, other = End.pair()
    fd, room = memfd(1), memoryview(bytearray(8))
    one.send(b"ab")
    one.send(b"cd")
    one.sendmsg([b"e", b"f"], [(1, 1, [fd])])
    one.send(b"ghijklmnop")
    found = []
    while other.readable:
        size, ancillary, _, _ = other.recvmsg_into([room])
        found.append((bytes(room[:size]), len(ancillary)))
        for _, _, data in ancillary:
            os.close(int.from_bytes(data, "little"))
    assert found == [(b"abcd", 0), (b"efghijkl", 1), (b"mnop", 0)]
    with pytest.raises(BlockingIOError):
        other.recvmsg_into([room])
    one.close()
    assert other.recvmsg_into([room])[0] == 0
    with pytest.raises(BrokenPipeError):
        other.send(b"x")
    other.close()
