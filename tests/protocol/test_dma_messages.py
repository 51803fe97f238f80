"""DMA_READ and DMA_WRITE: the server asks, the client answers, and commands that come meanwhile wait their turn."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing

import pytest

from protocol.backend import (
    DEADLINE,
    ERROR,
    NO_REPLY,
    PLAIN,
    QEMU_PROPOSAL,
    REPLY,
    Answer,
    FakeDevice,
    Server,
    Wire,
    fd_count,
    message,
    served,
)
from protocol.guest import GUEST, GuestMemory
from vfio_user import (
    Client,
    Command,
    Disconnected,
    DmaAccess,
    ProtocolError,
    RegionAccess,
    RemoteError,
    Stalemate,
    TimedOut,
    VfioUserError,
)
from vfio_user.dma_requests import MOST_QUEUED, MOST_QUEUED_FDS
from vfio_user.in_process import joined


def wait(client: Client, future: Future[bytes | None]) -> bytes | None:
    """Answer the server until it is done."""
    while not future.done():
        client.poll(0.01)
    return future.result(DEADLINE)


# -- our client and our server


@pytest.mark.parametrize("count", [0, 1, 4096, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_guest_memory_is_read_by_message_in_pieces_of_what_the_client_takes(device: FakeDevice, count: int) -> None:
    memory = GuestMemory(4 << 20)
    with joined(device, memory=memory) as (_, session):
        assert session.dma_read(GUEST + 5, count) == memory.data[5 : 5 + count]


def test_no_reply_is_asked_for_that_a_client_could_not_send_by_one_call(device: FakeDevice) -> None:
    """QEMU sends by one call, and forgets what the socket did not take."""
    content = os.urandom(3 << 20)
    with served(device) as (server, sock), closing(Wire(sock)) as wire:
        wire.send(Command.VERSION, bytes(4) + QEMU_PROPOSAL)
        wire.receive()
        future = server.call(lambda: server.session.dma_read(0, len(content)))
        sent = 0
        while sent < len(content):
            asked = wire.receive()
            address, count = struct.unpack("<QQ", asked.payload)
            assert count <= 1 << 16
            reply = message(asked.command, asked.payload + content[address:][:count], id=asked.id, flags=REPLY)
            assert sock.send(reply, socket.MSG_DONTWAIT) == len(reply)
            sent += count
        assert future.result(DEADLINE) == content


@pytest.mark.parametrize("count", [0, 1, 4096, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_guest_memory_is_written_by_message(device: FakeDevice, count: int) -> None:
    memory, data = GuestMemory(4 << 20), os.urandom(count)
    with joined(device, memory=memory) as (_, session):
        session.dma_write(GUEST + 5, data)
        assert memory.data[5 : 5 + count] == data


def test_a_register_whose_hook_asks_for_memory_is_served(device: FakeDevice) -> None:
    memory = GuestMemory(4096)
    with joined(device, memory=memory) as (client, session):
        device.on_read = lambda region, offset, count: session.dma_read(GUEST + offset, count)
        assert client.read(PLAIN, 16, 8) == memory.data[16:24]


def test_the_data_of_a_write_stays_as_it_was_while_its_hook_asks_for_memory(device: FakeDevice) -> None:
    memory = GuestMemory(1 << 20)
    seen: list[bytes] = []
    with joined(device, memory=memory) as (client, session):

        def hook(region: int, offset: int, data: memoryview) -> None:
            session.dma_read(GUEST, 1 << 20)
            seen.append(bytes(data))

        device.on_write = hook
        client.write(PLAIN, 0, b"doorbell")
    assert seen == [b"doorbell"]


def test_a_client_without_memory_refuses(device: FakeDevice) -> None:
    with joined(device) as (_, session), pytest.raises(RemoteError, match="DMA_READ") as refusal:
        session.dma_read(GUEST, 8)
    assert refusal.value.errno == errno.EFAULT


def test_memory_that_is_not_there_is_refused_with_its_errno(device: FakeDevice) -> None:
    with served(device) as (server, sock), Client(sock, memory=GuestMemory(64)) as client:
        future = server.call(lambda: server.session.dma_write(GUEST + 60, bytes(8)))
        with pytest.raises(RemoteError, match=r"DMA_WRITE.*Bad address"):
            wait(client, future)


def test_a_hooks_dma_that_fails_fails_the_access(device: FakeDevice) -> None:
    with served(device) as (server, sock), Client(sock) as client:
        device.on_read = lambda region, offset, count: server.session.dma_read(GUEST, count)
        with pytest.raises(RemoteError, match=r"REGION_READ.*Bad address"):
            client.read(PLAIN, 0, 8)
        device.on_read = lambda region, offset, count: bytes(count)
        assert client.read(PLAIN, 0, 4) == bytes(4)


def test_no_memory_is_asked_for_before_a_client_has_introduced_itself(device: FakeDevice) -> None:
    with served(device) as (server, _), pytest.raises(Disconnected, match="introduced"):
        server.call(lambda: server.session.dma_read(GUEST, 8)).result(DEADLINE)


# -- a raw client


def test_a_request_is_as_the_text_has_it(conversation: tuple[Server, Wire]) -> None:
    server, wire = conversation
    future = server.call(lambda: server.session.dma_read(0x1000, 8))
    asked = wire.receive()
    assert asked[1:] == (Command.DMA_READ, 0, 0, struct.pack("<QQ", 0x1000, 8), [])
    wire.reply(asked, asked.payload + b"8 bytes.")
    assert future.result(DEADLINE) == b"8 bytes."
    server.call(lambda: server.session.dma_write(0x2000, b"12"))
    asked = wire.receive()
    assert asked[1:] == (Command.DMA_WRITE, 0, 0, struct.pack("<QQ", 0x2000, 2) + b"12", [])
    wire.reply(asked, asked.payload[:16])


def test_commands_that_come_meanwhile_wait_and_keep_their_order(
    conversation: tuple[Server, Wire], eventfd: Callable[[], int]
) -> None:
    server, wire = conversation
    order: list[int] = []
    server.device.on_write = lambda region, offset, data: order.append(offset)
    future = server.call(lambda: (server.session.dma_read(0, 4), list(order)))
    asked = wire.receive()
    for number in range(10):
        wire.send(
            Command.REGION_WRITE,
            RegionAccess(number, PLAIN, 1).pack() + b"!",
            id=number,
            fds=[eventfd()] * (number % 2),
        )
    wire.reply(asked, asked.payload + b"late")
    assert future.result(DEADLINE) == (b"late", [])
    assert [wire.receive().id for _ in range(10)] == list(range(10))
    assert order == list(range(10))


def test_a_reply_that_never_comes_times_out_and_one_that_comes_late_is_passed_over(
    short_conversation: tuple[Server, Wire],
) -> None:
    server, wire = short_conversation
    future = server.call(lambda: server.session.dma_read(0, 4))
    asked = wire.receive()
    with pytest.raises(TimedOut):
        future.result(DEADLINE)
    wire.reply(asked, asked.payload + b"late")
    future = server.call(lambda: server.session.dma_read(0, 4))
    asked = wire.receive()
    wire.reply(asked, asked.payload + b"now!")
    assert future.result(DEADLINE) == b"now!"


@pytest.mark.parametrize(("sent", "errno_"), [(errno.EPERM, errno.EPERM), (0xFFFF_FFFF, errno.EIO)])
def test_an_error_reply_is_raised_with_its_errno(conversation: tuple[Server, Wire], sent: int, errno_: int) -> None:
    server, wire = conversation
    future = server.call(lambda: server.session.dma_read(0, 4))
    wire.reply(wire.receive(), error=sent)
    with pytest.raises(RemoteError) as refusal:
        future.result(DEADLINE)
    assert refusal.value.errno == errno_


def test_an_error_reply_without_an_errno_is_an_error_all_the_same(conversation: tuple[Server, Wire]) -> None:
    server, wire = conversation
    future = server.call(lambda: server.session.dma_read(0, 4))
    asked = wire.receive()
    wire.raw(message(asked.command, id=asked.id, flags=REPLY | ERROR))
    with pytest.raises(RemoteError) as refusal:
        future.result(DEADLINE)
    assert refusal.value.errno == errno.EIO


READ_REPLIES: dict[str, Callable[[Answer], bytes]] = {
    "nothing": lambda asked: b"",
    "no data": lambda asked: asked.payload,
    "too little": lambda asked: asked.payload + b"123",
    "too much": lambda asked: asked.payload + b"12345",
    "another address": lambda asked: DmaAccess(1, 4).pack() + b"1234",
    "another count": lambda asked: DmaAccess(0, 5).pack() + b"12345",
}


@pytest.mark.parametrize("answer", READ_REPLIES.values(), ids=READ_REPLIES.keys())
def test_a_read_reply_that_cannot_be_is_refused(
    conversation: tuple[Server, Wire], answer: Callable[[Answer], bytes]
) -> None:
    server, wire = conversation
    future = server.call(lambda: server.session.dma_read(0, 4))
    asked = wire.receive()
    wire.reply(asked, answer(asked))
    with pytest.raises(ProtocolError, match="DMA_READ reply"):
        future.result(DEADLINE)


@pytest.mark.parametrize("answer", [b"", DmaAccess(0, 3).pack(), DmaAccess(8, 4).pack()])
def test_a_write_reply_that_cannot_be_is_refused(conversation: tuple[Server, Wire], answer: bytes) -> None:
    server, wire = conversation
    future = server.call(lambda: server.session.dma_write(0, b"1234"))
    wire.reply(wire.receive(), answer)
    with pytest.raises(ProtocolError, match="DMA_WRITE reply"):
        future.result(DEADLINE)


def test_a_client_that_leaves_meanwhile_is_disconnected(conversation: tuple[Server, Wire]) -> None:
    server, wire = conversation
    future = server.call(lambda: server.session.dma_read(0, 4))
    wire.receive()
    wire.close()
    with pytest.raises(Disconnected):
        future.result(DEADLINE)
    assert isinstance(server.join(), Disconnected)


def test_commands_without_end_instead_of_a_reply_are_given_up_on(conversation: tuple[Server, Wire]) -> None:
    server, wire = conversation
    future = server.call(lambda: server.session.dma_read(0, 4))
    wire.receive()
    flood = message(Command.DEVICE_RESET, flags=NO_REPLY) * (MOST_QUEUED + 1)
    wire.raw(flood)
    with pytest.raises(TimedOut, match="commands came instead"):
        future.result(DEADLINE)


@pytest.mark.parametrize("over", [0, 1])
def test_what_waits_may_be_of_so_many_bytes_and_no_more(
    conversation: tuple[Server, Wire], over: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RegionAccess(0, PLAIN, 1).pack() + b"!"
    monkeypatch.setattr("vfio_user.dma_requests.MOST_QUEUED_BYTES", 2 * len(write) - over)
    server, wire = conversation
    future = server.call(lambda: server.session.dma_read(0, 4))
    asked = wire.receive()
    for _ in range(2):
        wire.send(Command.REGION_WRITE, write, flags=NO_REPLY)
    if over:
        with pytest.raises(TimedOut, match="commands came instead"):
            future.result(DEADLINE)
    else:
        wire.reply(asked, asked.payload + b"well")
        assert future.result(DEADLINE) == b"well"


def test_replies_without_end_to_other_things_are_given_up_on(short_conversation: tuple[Server, Wire]) -> None:
    server, wire = short_conversation
    future = server.call(lambda: server.session.dma_read(0, 8))
    asked = wire.receive()
    deadline = time.monotonic() + DEADLINE
    replies = message(Command.DMA_READ, id=asked.id ^ 1, flags=REPLY) * 5_000
    while not future.done() and time.monotonic() < deadline:
        wire.raw(replies)
    with pytest.raises(TimedOut, match="no reply to DMA_READ"):
        future.result(0)


def test_fds_without_end_instead_of_a_reply_are_given_up_on_and_closed(
    device: FakeDevice, eventfd: Callable[[], int]
) -> None:
    fd = eventfd()
    before = fd_count()
    with served(device) as (server, sock), closing(Wire(sock)) as wire:
        wire.send(Command.VERSION, bytes(4) + QEMU_PROPOSAL)
        wire.receive()
        future = server.call(lambda: server.session.dma_read(0, 4))
        wire.receive()
        for _ in range(MOST_QUEUED_FDS // 250 + 1):
            wire.send(Command.DEVICE_RESET, flags=NO_REPLY, fds=[fd] * 250)
        with pytest.raises(TimedOut):
            future.result(DEADLINE)
    assert fd_count() == before


# -- a raw client that does not listen while it waits itself


@pytest.fixture
def stubborn(device: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Wire]]:
    """A server with little patience, and a raw client which has introduced itself."""
    monkeypatch.setattr("vfio_user.dma_requests.GRACE", 0.05)
    with served(device) as (server, sock), closing(Wire(sock)) as wire:
        wire.send(Command.VERSION, bytes(4) + QEMU_PROPOSAL)
        assert wire.receive().flags == REPLY
        device.calls.clear()
        yield server, wire


def test_dma_for_an_access_fails_when_the_client_listens_to_nothing_but_its_reply(
    stubborn: tuple[Server, Wire],
) -> None:
    server, wire = stubborn
    server.device.on_read = lambda region, offset, count: server.session.dma_read(0, count)
    wire.send(Command.REGION_READ, RegionAccess(0, PLAIN, 4).pack())
    asked = wire.receive()
    assert asked.command == Command.DMA_READ
    refusal = wire.receive()
    assert refusal[1:] == (Command.REGION_READ, REPLY | ERROR, errno.EDEADLK, b"", [])
    wire.reply(asked, asked.payload + b"late")
    wire.send(Command.REGION_READ, RegionAccess(0, PLAIN, 4).pack())
    assert wire.receive().error == errno.EDEADLK  # and it is not asked again


def test_a_client_that_does_not_even_take_a_write_of_nothing_is_said_not_to_answer_the_read(
    stubborn: tuple[Server, Wire],
) -> None:
    server, wire = stubborn
    server.device.on_read = lambda region, offset, count: server.session.dma_read(0, count)
    for _ in range(2):
        wire.send(Command.REGION_READ, RegionAccess(0, PLAIN, 4).pack())
        while wire.receive_any().error != errno.EDEADLK:
            pass
    server.call(lambda: None).result(DEADLINE)
    told = [str(refusal) for refusal in server.device.refusals]
    assert ["DMA_READ while it waits for the reply to REGION_READ" in text for text in told] == [True, True]


def test_a_register_is_read_while_dma_waits_for_a_client_that_waits_for_the_register(
    stubborn: tuple[Server, Wire],
) -> None:
    server, wire = stubborn
    future = server.call(lambda: server.session.dma_read(0, 4))
    asked = wire.receive()
    for number in range(3):
        wire.send(Command.REGION_READ, RegionAccess(0, PLAIN, 4).pack(), id=number)
        assert wire.receive()[:3] == (number, Command.REGION_READ, REPLY)
    wire.reply(asked, asked.payload + b"late")
    assert future.result(DEADLINE) == b"late"
    assert server.device.calls == ["read"] * 3


@pytest.mark.parametrize("posted", [0, NO_REPLY])
def test_dma_fails_when_the_client_waits_for_something_that_must_come_after_it(
    stubborn: tuple[Server, Wire], posted: int
) -> None:
    server, wire = stubborn
    future = server.call(lambda: server.session.dma_read(0, 4))
    wire.receive()
    wire.send(Command.REGION_WRITE, RegionAccess(0, PLAIN, 1).pack() + b"!", flags=posted)
    wire.send(Command.REGION_READ, RegionAccess(0, PLAIN, 4).pack(), id=9)
    with pytest.raises(Stalemate, match="DMA_READ while it waits for the reply to REGION_"):
        future.result(DEADLINE)
    while wire.receive().id != 9:
        pass
    assert [call for call in server.device.calls if call != "before_reply"] == ["write", "read"]


# -- a raw server


BAD_REQUESTS = {
    "another command": (Command.REGION_READ, bytes(16)),
    "an unknown command": (99, b""),
    "no head": (Command.DMA_READ, bytes(15)),
    "too much to read": (Command.DMA_READ, struct.pack("<QQ", GUEST, (1 << 20) + 1)),
    "no end to read": (Command.DMA_READ, struct.pack("<QQ", GUEST, (1 << 64) - 1)),
    "less data than count": (Command.DMA_WRITE, struct.pack("<QQ", GUEST, 4) + b"123"),
    "more data than count": (Command.DMA_WRITE, struct.pack("<QQ", GUEST, 4) + b"12345"),
}


@pytest.mark.parametrize(("command", "payload"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_a_servers_request_that_cannot_be_is_refused(
    fake_server: Callable[..., tuple[Client, Wire]], command: int, payload: bytes, eventfd: Callable[[], int]
) -> None:
    client, wire = fake_server(memory=GuestMemory(8 << 20))
    wire.send(command, payload, id=77, fds=[eventfd()])
    client.poll(DEADLINE)
    assert wire.receive() == (77, command, REPLY | ERROR, errno.EINVAL, b"", [])


def test_a_refusal_without_an_errno_is_still_an_error_reply(fake_server: Callable[..., tuple[Client, Wire]]) -> None:
    class Sulking(GuestMemory):
        def read(self, address: int, count: int) -> bytes:
            raise VfioUserError("no", 0)

    client, wire = fake_server(memory=Sulking(64))
    wire.send(Command.DMA_READ, struct.pack("<QQ", GUEST, 4))
    client.poll(DEADLINE)
    assert wire.receive().flags == REPLY | ERROR


def test_memory_that_gives_too_little_is_a_refusal(fake_server: Callable[..., tuple[Client, Wire]]) -> None:
    class Short(GuestMemory):
        def read(self, address: int, count: int) -> bytes:
            return b"1"

    client, wire = fake_server(memory=Short(64))
    wire.send(Command.DMA_READ, struct.pack("<QQ", GUEST, 4))
    client.poll(DEADLINE)
    assert wire.receive().error == errno.EFAULT


def test_a_posted_request_is_carried_out_and_not_answered(fake_server: Callable[..., tuple[Client, Wire]]) -> None:
    memory = GuestMemory(64)
    client, wire = fake_server(memory=memory)
    wire.send(Command.DMA_WRITE, struct.pack("<QQ", GUEST, 4) + b"post", flags=NO_REPLY)
    client.poll(DEADLINE)
    assert memory.data[:4] == b"post"
    assert wire.silent
