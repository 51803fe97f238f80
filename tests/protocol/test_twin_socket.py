"""The twin socket: the server's commands on a connection of their own, so that neither side waits for the other."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import pytest

from protocol.backend import (
    DEADLINE,
    NO_REPLY,
    PLAIN,
    QEMU_PROPOSAL,
    REPLY,
    FakeDevice,
    Link,
    Wire,
    fd_count,
    message,
    served,
)
from protocol.guest import GUEST, GuestMemory
from vfio_user import (
    Capabilities,
    Client,
    Command,
    Disconnected,
    DmaFault,
    FramingError,
    ProtocolError,
    RemoteError,
    TimedOut,
    Version,
    VfioUserError,
)
from vfio_user.tap import Piece

PROPOSAL = b'{"capabilities":{"max_msg_fds":16,"twin_socket":{"supported":true}}}\0'


@contextmanager
def twins(device: FakeDevice) -> Iterator[tuple[Link, Wire]]:
    """A session with a raw client, and the client's end of their twin socket."""
    with closing(Link(device)) as link:
        answer = link.greet(PROPOSAL)
        assert json.loads(answer.payload[4:-1])["capabilities"]["twin_socket"] == {"supported": True, "fd_index": 0}
        with closing(Wire(socket.socket(fileno=os.dup(*answer.fds)))) as twin:
            yield link, twin


# -- the server


def test_dma_goes_over_the_twin_socket_while_the_client_waits_on_the_other(device: FakeDevice) -> None:
    """A client that reads nothing on the main socket meanwhile, and one that answers in a thread of its own."""
    with twins(device) as (link, twin):
        device.on_read = lambda *_: link.session.dma_read(GUEST, 4)
        link.send(Command.REGION_READ, struct.pack("<QII", 0, PLAIN, 4))
        thread = threading.Thread(target=link.session.service)
        thread.start()
        asked = twin.receive()
        assert (asked.command, asked.flags, asked.payload) == (Command.DMA_READ, 0, struct.pack("<QQ", GUEST, 4))
        assert link.silent
        twin.reply(asked, asked.payload + b"back")
        thread.join(DEADLINE)
        assert link.receive().payload[16:] == b"back"


def test_commands_that_come_during_the_wait_stay_where_they_are(device: FakeDevice) -> None:
    with twins(device) as (link, twin):
        device.on_write = lambda region, offset, data: device.calls.append(bytes(link.session.dma_read(0, 4)).decode())
        for _ in range(3):
            link.send(Command.REGION_WRITE, struct.pack("<QII", 0, PLAIN, 4) + b"ring", flags=NO_REPLY)
        twin.raw(b"".join(message(Command.DMA_READ, struct.pack("<QQ", 0, 4) + b"%04d" % n, id=n, flags=REPLY)
                          for n in (1, 2, 3)))  # fmt: skip
        link.session.service()
        assert [call for call in device.calls if call.isdigit()] == ["0001", "0002", "0003"]
        assert link.silent


@pytest.mark.parametrize(
    "proposal",
    [
        b"",
        QEMU_PROPOSAL,
        b'{"capabilities":{"twin_socket":{"supported":false}}}\0',
        b'{"capabilities":{"twin_socket":{}}}\0',
        b'{"capabilities":{"max_msg_fds":0,"twin_socket":{"supported":true}}}\0',
    ],
)
def test_none_is_made_for_a_client_that_does_not_ask_or_cannot_take_it(stranger: Link, proposal: bytes) -> None:
    answer = stranger.greet(proposal)
    assert b"twin_socket" not in answer.payload
    assert answer.fds == []


def test_what_is_no_awaited_reply_is_dropped_with_its_descriptors(
    device: FakeDevice, eventfd: Callable[[], int]
) -> None:
    with twins(device) as (link, twin):
        before = fd_count()
        twin.send(Command.DEVICE_RESET, fds=[eventfd()])
        twin.send(Command.REGION_WRITE, struct.pack("<QII", 0, PLAIN, 4) + b"ring", flags=NO_REPLY)
        twin.send(Command.DMA_READ, struct.pack("<QQ", 0, 4) + b"late", id=7, flags=REPLY)
        twin.send(Command.DMA_READ, struct.pack("<QQ", 0, 4) + b"back", id=1, flags=REPLY, fds=[eventfd()])
        assert link.session.dma_read(0, 4) == b"back"
        link.session.service()
        assert {"reset", "write"} & set(device.calls) == set()
        assert fd_count() == before + 2  # the test's own eventfds


@pytest.mark.slow
def test_commands_without_end_do_not_hold_up_the_server(device: FakeDevice) -> None:
    with twins(device) as (link, twin):
        ended = threading.Event()

        def flood() -> None:
            with contextlib.suppress(OSError):
                while not ended.is_set():
                    twin.raw(message(Command.DEVICE_RESET) * 1000)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            with pytest.raises(TimedOut, match="no reply to DMA_READ"):
                link.session.dma_read(0, 4)
        finally:
            ended.set()
            twin.sock.shutdown(socket.SHUT_RDWR)
            link.session.close()
            thread.join(DEADLINE)


def test_a_size_that_no_message_has_ends_the_connection(device: FakeDevice) -> None:
    with twins(device) as (link, twin):
        twin.raw(bytes(16))
        device.on_read = lambda *_: link.session.dma_read(0, 4)
        link.send(Command.REGION_READ, struct.pack("<QII", 0, PLAIN, 4))
        with pytest.raises(FramingError):
            link.session.service()


@pytest.mark.parametrize("last", [b"", message(Command.DMA_READ, bytes(20), flags=REPLY)[:24]])
def test_a_twin_socket_that_ends_is_an_error_of_the_dma_alone(device: FakeDevice, last: bytes) -> None:
    with twins(device) as (link, twin):
        twin.raw(last)
        twin.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(VfioUserError):
            link.session.dma_read(0, 4)
        device.on_read = lambda *_: link.session.dma_read(0, 4)
        assert link.ask(Command.REGION_READ, struct.pack("<QII", 0, PLAIN, 4)).error
        assert link.ok(Command.DEVICE_RESET) == b""


def test_all_is_closed_with_the_session(device: FakeDevice) -> None:
    before = fd_count()
    with twins(device):
        assert fd_count() == before + 5  # two sockets, the session's end, and the client's end twice
    assert fd_count() == before


def test_a_tap_shows_what_goes_over_the_twin_socket(device: FakeDevice) -> None:
    shown: list[tuple[str, int]] = []

    class Show:
        def received(self, pieces: Sequence[Piece], fds: int) -> None:
            shown.append(("received", int.from_bytes(b"".join(pieces)[2:4], "little")))

        def sent(self, pieces: Sequence[Piece], fds: int) -> None:
            shown.append(("sent", int.from_bytes(b"".join(pieces)[2:4], "little")))

    with closing(Link(device)) as link:
        link.session.tap(Show())
        link.greet(PROPOSAL)
        twin = Wire(socket.socket(fileno=os.dup(link._fds[0])))
        with closing(twin):
            twin.send(Command.DMA_READ, struct.pack("<QQ", 0, 4) + b"back", id=1, flags=REPLY)
            link.session.dma_read(0, 4)
            link.session.tap(None)
            twin.send(Command.DMA_READ, struct.pack("<QQ", 0, 4) + b"back", id=2, flags=REPLY)
            link.session.dma_read(0, 4)
    assert shown == [("received", 1), ("sent", 1), ("sent", 11), ("received", 11)]


# -- the client, and ours against ours


def test_our_client_answers_at_once_while_it_waits_and_while_it_does_not(device: FakeDevice) -> None:
    memory = GuestMemory(1 << 20)
    with served(device) as (server, sock), Client(sock, memory=memory, twin=True) as client:
        assert client.capabilities.twin_socket
        device.on_read = lambda *_: server.session.dma_read(GUEST + 8, 8)
        assert client.read(PLAIN, 0, 8) == memory.data[8:16]
        future = server.call(lambda: server.session.dma_write(GUEST, os.urandom(1 << 20)))
        assert future.result(DEADLINE) is None  # nobody calls client.poll()
        with pytest.raises(RemoteError, match="DMA_READ"):
            server.call(lambda: server.session.dma_read(0, 8)).result(DEADLINE)


def test_a_server_without_twin_sockets_serves_such_a_client(device: FakeDevice) -> None:
    memory = GuestMemory(4096)
    with (
        served(device, limits=Capabilities(max_msg_fds=16)) as (server, sock),
        Client(sock, memory=memory, twin=True) as client,
    ):
        assert not client.capabilities.twin_socket
        device.on_read = lambda *_: server.session.dma_read(GUEST, 8)
        assert client.read(PLAIN, 0, 8) == memory.data[:8]


def test_a_memory_that_raises_ends_the_twin_socket_and_no_more(
    device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(GuestMemory):
        def read(self, address: int, count: int) -> bytes:
            if address == GUEST:
                raise DmaFault(address, count, "refused")
            raise ZeroDivisionError

    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    with served(device) as (server, sock), Client(sock, memory=Broken(4096), twin=True) as client:
        with pytest.raises(RemoteError):
            server.call(lambda: server.session.dma_read(GUEST, 8)).result(DEADLINE)
        with pytest.raises(Disconnected):
            server.call(lambda: server.session.dma_read(GUEST + 8, 8)).result(DEADLINE)
        client.reset()
    assert len(raised) == 1


def test_nothing_stays_of_a_client_with_a_twin_socket(device: FakeDevice) -> None:
    before, threads = fd_count(), threading.active_count()
    with served(device) as (_, sock), Client(sock, twin=True):
        assert threading.active_count() == threads + 2
    assert (fd_count(), threading.active_count()) == (before, threads)


def answer(**twin: object) -> bytes:
    return struct.pack("<HH", 0, 2) + json.dumps({"capabilities": {"twin_socket": twin}}).encode() + b"\0"


@pytest.mark.parametrize(
    ("payload", "fds", "why"),
    [
        (answer(supported=True), 1, "twin_socket.fd_index None, but 1 fds came"),
        (answer(supported=True, fd_index=0), 0, "twin_socket.fd_index 0, but 0 fds came"),
        (answer(supported=True, fd_index=2), 2, "twin_socket.fd_index 2, but 2 fds came"),
        (answer(supported=True, fd_index=-1), 1, "twin_socket.fd_index is -1"),
        (answer(supported=True, fd_index=True), 1, "twin_socket.fd_index is True"),
        (answer(supported=True, fd_index=0), 1, "twin_socket is no socket"),
    ],
)
def test_a_reply_that_contradicts_itself_ends_the_connection(
    memfd: Callable[[int], int], payload: bytes, fds: int, why: str
) -> None:
    fd = memfd(1)
    before = fd_count()
    ours, theirs = socket.socketpair()
    with closing(Wire(theirs)) as wire:
        wire.raw(message(Command.VERSION, payload, flags=REPLY), [fd] * fds)
        with pytest.raises(ProtocolError, match=why):
            Client(ours, twin=True)
    assert fd_count() == before


def test_a_socket_of_another_kind_is_refused() -> None:
    before = fd_count()
    ours, theirs = socket.socketpair()
    one, other = socket.socketpair(type=socket.SOCK_DGRAM)
    with closing(Wire(theirs)) as wire, one, other:
        wire.raw(message(Command.VERSION, answer(supported=True, fd_index=0), flags=REPLY), [one.fileno()])
        with pytest.raises(ProtocolError, match="twin_socket is no UNIX stream socket"):
            Client(ours, twin=True)
    assert fd_count() == before


def test_a_server_that_sends_without_end_does_not_hold_up_the_end_of_a_client() -> None:
    command = message(Command.DMA_WRITE, struct.pack("<QQ", GUEST, 8) + bytes(8), flags=NO_REPLY)
    ours, theirs = socket.socketpair()
    one, other = socket.socketpair()
    begun, over = threading.Event(), threading.Event()

    class Flooded(GuestMemory):
        def write(self, address: int, data: bytes) -> None:
            begun.set()
            if not over.is_set():
                with contextlib.suppress(OSError):
                    other.send(command)  # so there is always one more

    with closing(Wire(theirs)) as wire, other:
        with one:
            wire.raw(message(Command.VERSION, answer(supported=True, fd_index=0), flags=REPLY), [one.fileno()])
            client = Client(ours, memory=Flooded(8), twin=True)
        other.send(command)
        assert begun.wait(DEADLINE)
        closer = threading.Thread(target=client.close)
        closer.start()
        closer.join(DEADLINE)
        held_up = closer.is_alive()
        over.set()
        closer.join()
        assert not held_up


def test_a_twin_socket_that_nobody_asked_for_is_refused(fake_server: Callable[..., tuple[Client, Wire]]) -> None:
    with pytest.raises(ProtocolError, match="twin_socket was not proposed"):
        fake_server(answer(supported=True, fd_index=0))


def test_the_index_is_read_as_it_was_written() -> None:
    version = Version(0, 2, Capabilities.of(twin_socket=True, fd_index=3))
    assert Version.unpack(memoryview(version.pack())) == version
    assert Capabilities.of(max_msg_fds=1).fd_index is None


def test_errors_of_dma_have_their_errno(device: FakeDevice) -> None:
    with served(device) as (server, sock), Client(sock, memory=GuestMemory(4096), twin=True):
        with pytest.raises(RemoteError) as refusal:
            server.call(lambda: server.session.dma_read(0, 8)).result(DEADLINE)
        assert refusal.value.errno == errno.EFAULT
