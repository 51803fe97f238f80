"""The client when its server is slow, gone, or talks nonsense; and when it is asked for memory."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

from protocol.backend import (
    DEADLINE,
    ERROR,
    PLAIN,
    REPLY,
    SIZES,
    FakeDevice,
    Wire,
    fd_count,
    message,
    served,
)
from protocol.conftest import ANSWER
from protocol.guest import GUEST, GuestMemory
from vfio_user import (
    PROPOSAL,
    Client,
    Command,
    Disconnected,
    FramingError,
    ProtocolError,
    RemoteError,
    TimedOut,
    VfioUserError,
    aio,
)
from vfio_user.in_process import joined

MakeServer = Callable[..., tuple[Client, Wire]]


# -- trouble


def test_a_server_that_does_not_answer_times_out(fake_server: MakeServer) -> None:
    client, _ = fake_server(timeout=0.02)
    with pytest.raises(TimedOut):
        client.device_info()


def test_a_late_reply_is_not_taken_for_the_next_ones(fake_server: MakeServer, eventfd: Callable[[], int]) -> None:
    client, wire = fake_server(timeout=0.05)
    with pytest.raises(TimedOut):
        client.irq_info(0)
    late = wire.receive()
    wire.reply(late, struct.pack("<IIII", 16, 0, 0, 99), fds=[eventfd()])
    wire.raw(message(Command.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 1, 0, 1), id=late.id + 1, flags=REPLY))
    assert client.irq_info(0).count == 1


def test_a_server_that_leaves_is_disconnected(fake_server: MakeServer) -> None:
    client, wire = fake_server()
    wire.close()
    with pytest.raises(Disconnected):
        client.device_info()
    with pytest.raises(Disconnected):
        client.poll(0)


def test_a_closed_client_is_disconnected(fake_server: MakeServer) -> None:
    client, _ = fake_server()
    client.close()
    with pytest.raises(Disconnected):
        client.device_info()
    with pytest.raises(Disconnected):
        client.poll()


def test_a_size_that_cannot_be_is_a_framing_error(fake_server: MakeServer) -> None:
    client, wire = fake_server()
    wire.raw(struct.pack("<HHIII", 2, 4, 8, REPLY, 0))
    with pytest.raises(FramingError, match="message size 8"):
        client.device_info()


def region_info(argsz: int = 32, index: int = PLAIN) -> bytes:
    """A DEVICE_GET_REGION_INFO reply."""
    return struct.pack("<IIIIQQ", argsz, 3, index, 0, SIZES[PLAIN], 0)


INFO, IRQ, IO_FDS = Command.DEVICE_GET_REGION_INFO, Command.DEVICE_GET_IRQ_INFO, Command.DEVICE_GET_REGION_IO_FDS
BAD_REPLIES: dict[str, tuple[Callable[[Client], object], int, bytes, str]] = {
    "to another command": (lambda client: client.reset(), IRQ, b"", "answered by a reply to DEVICE_GET_IRQ_INFO"),
    "device cut short": (lambda client: client.device_info(), Command.DEVICE_GET_INFO, bytes(15), "15 bytes"),
    "irq cut short": (lambda client: client.irq_info(0), IRQ, bytes(15), "15 bytes"),
    "another irq": (lambda client: client.irq_info(0), IRQ, struct.pack("<IIII", 16, 0, 1, 1), "index 1, asked"),
    "region cut short": (lambda client: client.region_info(0), INFO, bytes(31), "31 bytes"),
    "another region": (lambda client: client.region_info(0), INFO, region_info(index=1), "index 1, asked"),
    "argsz beyond belief": (
        lambda client: client.region_info(0),
        INFO,
        region_info(argsz=0xFFFF_FFFF),
        "argsz 4294967295, at most 1048576 is believed",
    ),
    "read too short": (lambda client: client.read(0, 0, 4), Command.REGION_READ, bytes(16), "0 bytes, expected 4"),
    "read too long": (lambda client: client.read(0, 0, 4), Command.REGION_READ, bytes(21), "5 bytes, expected 4"),
    "read without head": (lambda client: client.read(0, 0, 4), Command.REGION_READ, b"", "-16 bytes, expected 4"),
    "count cut short": (lambda client: client.write_multi([]), Command.REGION_WRITE_MULTI, bytes(7), "7 bytes"),
}


@pytest.mark.parametrize(("action", "command", "payload", "why"), BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
def test_a_reply_that_cannot_be_is_refused_and_its_fds_are_closed(
    fake_server: MakeServer,
    eventfd: Callable[[], int],
    action: Callable[[Client], object],
    command: int,
    payload: bytes,
    why: str,
) -> None:
    client, wire = fake_server()
    fd, before = eventfd(), fd_count()
    wire.raw(message(command, payload, id=2, flags=REPLY), [fd] * 3)
    with pytest.raises(ProtocolError, match=why):
        action(client)
    assert fd_count() == before


@pytest.mark.parametrize("command", [INFO, IO_FDS])
def test_a_server_that_wants_a_larger_argsz_each_time_is_given_up_on(fake_server: MakeServer, command: int) -> None:
    client, wire = fake_server()
    first = [region_info()] if command == IO_FDS else []
    more = [struct.pack("<IIII", size, 0, 0, 0).ljust(32, b"\0") for size in (2000, 2001, 2002)]
    ask = client.io_fds if command == IO_FDS else client.region_info
    with (
        wire.answering(*((payload, ()) for payload in first + more)),
        pytest.raises(ProtocolError, match="argsz grows each time"),
    ):
        ask(0)


@pytest.mark.parametrize("payload", [bytes(15), struct.pack("<IIII", 16, 0, 5, 0), struct.pack("<IIII", 56, 0, 0, 1)])
def test_sub_regions_that_cannot_be_are_refused_and_their_fds_closed(
    fake_server: MakeServer, eventfd: Callable[[], int], payload: bytes
) -> None:
    client, wire = fake_server()
    fd, before = eventfd(), fd_count()
    with (
        wire.answering((region_info(), ()), (payload, [fd] * 4)),
        pytest.raises(ProtocolError, match="DEVICE_GET_REGION_IO_FDS reply"),
    ):
        client.io_fds(0)
    assert fd_count() == before


def test_fds_that_no_entry_names_are_closed(fake_server: MakeServer, eventfd: Callable[[], int]) -> None:
    client, wire = fake_server()
    fd, before = eventfd(), fd_count()
    payload = struct.pack("<IIII", 56, 0, 0, 1) + struct.pack("<QQIIIIQ", 0, 4, 2, 0, 0, 0, 0)
    with wire.answering((region_info(), ()), (payload, [fd] * 4)):
        (sub,) = client.io_fds(0)
    assert fd_count() == before + 1
    os.close(sub.fd)


@pytest.mark.parametrize("code", [0, 0xFFFF_FFFF, 4096])
def test_an_error_whose_errno_is_none_is_eio(fake_server: MakeServer, code: int) -> None:
    client, wire = fake_server()
    wire.raw(struct.pack("<HHIII", 2, Command.DEVICE_RESET, 16, REPLY | ERROR, code))
    with pytest.raises(RemoteError) as refusal:
        client.reset()
    assert refusal.value.errno == errno.EIO


@pytest.mark.parametrize("code", [1, 4095])
def test_the_least_and_the_largest_errno_are_kept(code: int) -> None:
    assert RemoteError("DEVICE_RESET", code).errno == code


@contextmanager
def chattering(wire: Wire, data: bytes) -> Iterator[None]:
    """The far end sends ``data`` over and over, and reads what comes back."""
    over = threading.Event()
    wire.sock.setblocking(False)

    def run() -> None:
        rest = b""
        while not over.is_set():
            rest = rest or data * 100
            with suppress(BlockingIOError):
                rest = rest[wire.sock.send(rest) :]
            with suppress(BlockingIOError):
                wire.sock.recv(1 << 16)

    thread = threading.Thread(target=run, name="chatter")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


ASKING = message(Command.DMA_READ, struct.pack("<QQ", GUEST, 4), id=9)


STRAY = message(Command.DEVICE_RESET, id=99, flags=REPLY)


@pytest.mark.parametrize("data", [ASKING, STRAY], ids=["asking", "stray"])
def test_a_server_that_says_all_but_the_reply_times_out(fake_server: MakeServer, data: bytes) -> None:
    client, wire = fake_server(timeout=0.1, memory=GuestMemory(64))
    with chattering(wire, data), pytest.raises(TimedOut):
        client.reset()


# -- what the server asks


def test_poll_returns_though_the_server_never_stops_asking(fake_server: MakeServer) -> None:
    client, wire = fake_server(memory=GuestMemory(64))
    started = time.monotonic()
    with chattering(wire, ASKING):
        for _ in range(10):
            client.poll(DEADLINE)
    assert time.monotonic() - started < 10 * DEADLINE


def test_poll_answers_what_has_come(fake_server: MakeServer) -> None:
    memory = GuestMemory(64)
    client, wire = fake_server(memory=memory)
    for number in range(3):
        wire.send(Command.DMA_READ, struct.pack("<QQ", GUEST + number, 1), id=number)
    client.poll(DEADLINE)
    answers = [wire.receive() for _ in range(3)]
    assert [(one.id, one.flags, one.error) for one in answers] == [(number, REPLY, 0) for number in range(3)]
    assert [one.payload[16] for one in answers] == list(memory.data[:3])


def test_poll_with_nothing_to_do_returns(fake_server: MakeServer) -> None:
    fake_server()[0].poll(0)


def test_poll_waits_as_many_seconds_as_it_is_told(fake_server: MakeServer) -> None:
    client, _ = fake_server()
    started = time.monotonic()
    client.poll(0.03)
    assert 0.03 <= time.monotonic() - started < DEADLINE


def test_poll_passes_over_replies_that_nobody_waits_for(fake_server: MakeServer, eventfd: Callable[[], int]) -> None:
    client, wire = fake_server()
    before = fd_count()
    wire.send(Command.DEVICE_RESET, flags=REPLY, fds=[eventfd()])
    client.poll(DEADLINE)
    assert fd_count() == before + 1  # the eventfd made here


def test_what_comes_between_a_request_and_its_reply_is_answered(fake_server: MakeServer) -> None:
    memory = GuestMemory(64)
    client, wire = fake_server(memory=memory)
    wire.send(Command.DMA_WRITE, struct.pack("<QQ", GUEST, 4) + b"ring", id=2)
    wire.raw(message(Command.DEVICE_RESET, id=2, flags=REPLY))
    client.reset()
    assert memory.data[:4] == b"ring"
    assert [wire.receive().command, wire.receive().command] == [Command.DEVICE_RESET, Command.DMA_WRITE]


def test_what_comes_in_one_piece_with_a_reply_is_answered_at_once(fake_server: MakeServer) -> None:
    memory = GuestMemory(64)
    client, wire = fake_server(memory=memory)
    ask = message(Command.DMA_READ, struct.pack("<QQ", GUEST, 4))
    wire.raw(message(Command.DEVICE_RESET, id=2, flags=REPLY) + ask)
    client.reset()
    assert [wire.receive().command, wire.receive().command] == [Command.DEVICE_RESET, Command.DMA_READ]


def test_a_write_and_a_dma_write_of_a_mebibyte_may_cross(device: FakeDevice) -> None:
    memory = GuestMemory(1 << 20)
    with served(device) as (server, sock), Client(sock, memory=memory) as client:
        future = server.call(lambda: server.session.dma_write(GUEST, b"x" * (1 << 20)))
        client.write(PLAIN, 0, bytes(4096))
        while not future.done():
            client.poll(0.01)
        future.result(DEADLINE)
    assert memory.data == b"x" * (1 << 20)


def test_the_proposal_fits_what_we_can_do() -> None:
    assert PROPOSAL.max_msg_fds == 253
    assert PROPOSAL.max_data_xfer_size == 1 << 20
    assert (PROPOSAL.max_dma_maps, PROPOSAL.pgsizes) == (65535, 4096)
    assert (PROPOSAL.write_multiple, PROPOSAL.twin_socket) == (True, False)


# -- descriptors of the caller that are none

BAD = 1 << 20  # above what a process may have open
BAD_FDS: dict[str, Callable[[Any], Any]] = {
    f"DMA_MAP: no open descriptor: {BAD}": lambda client: client.dma_map(0, 4096, BAD),
    "DMA_MAP: no open descriptor: -1": lambda client: client.dma_map(0, 4096, -1),
    f"DEVICE_SET_IRQS: no open descriptor: {BAD}, -1": lambda client: client.trigger_eventfds(2, 0, [0, BAD, -1]),
}


@pytest.mark.parametrize("why", BAD_FDS)
def test_a_descriptor_that_is_not_open_is_the_callers_mistake(device: FakeDevice, why: str) -> None:
    before = fd_count()
    with served(device) as (_, sock), Client(sock) as client:
        with pytest.raises(VfioUserError, match=f"^{why}$") as refusal:
            BAD_FDS[why](client)
        assert refusal.value.errno == errno.EBADF
        client.reset()
    with joined(device) as (client, _):
        with pytest.raises(VfioUserError, match=f"^{why}$"):
            BAD_FDS[why](client)
        client.reset()
    assert fd_count() == before


@pytest.mark.parametrize("why", BAD_FDS)
def test_a_descriptor_that_is_not_open_is_the_callers_mistake_with_asyncio(device: FakeDevice, why: str) -> None:
    async def main() -> None:
        async with await aio.Client.open(sock) as client:
            with pytest.raises(VfioUserError, match=f"^{why}$") as refusal:
                await BAD_FDS[why](client)
            assert refusal.value.errno == errno.EBADF
            await client.reset()

    with served(device) as (_, sock):
        asyncio.run(main())


def test_a_descriptor_that_is_not_open_is_not_queued() -> None:
    async def main() -> None:
        async with await aio.Client.open(ours) as client:
            await client.write(PLAIN, 0, bytes(1 << 20), posted=True)  # more than the socket takes
            before = fd_count()
            with pytest.raises(VfioUserError, match=r"^DEVICE_SET_IRQS: no open descriptor: -1$") as refusal:
                await client.trigger_eventfds(2, 0, [0, -1])
            assert refusal.value.errno == errno.EBADF
            assert fd_count() == before

    ours, theirs = socket.socketpair()
    with closing(Wire(theirs)) as wire:
        wire.raw(message(Command.VERSION, ANSWER, flags=REPLY))
        asyncio.run(main())


# -- the end, while other threads wait


def poll_for_ever(client: Client) -> None:
    while True:
        client.poll(None)


@pytest.mark.parametrize("wait", [poll_for_ever, lambda client: client.read(PLAIN, 0, 4)])
def test_close_ends_what_other_threads_wait_in(fake_server: MakeServer, wait: Callable[[Client], object]) -> None:
    client, wire = fake_server(timeout=DEADLINE)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait, client)
        wire.send(Command.DMA_READ, struct.pack("<QQ", GUEST, 4))
        while wire.receive().command != Command.DMA_READ:
            pass
        client.close()
        with pytest.raises(EOFError):
            wire.receive()
        with pytest.raises(Disconnected, match="this client has been closed"):
            waiting.result(DEADLINE)


@pytest.mark.parametrize(
    "call", [lambda client: client.reset(), lambda client: client.write(PLAIN, 0, b"", posted=True), Client.poll]
)
def test_a_closed_client_says_so(fake_server: MakeServer, call: Callable[[Client], object]) -> None:
    client, _ = fake_server()
    client.close()
    with pytest.raises(Disconnected, match="this client has been closed"):
        call(client)


def test_a_client_that_its_memory_closes_says_so(device: FakeDevice) -> None:
    class Closing(GuestMemory):
        def read(self, address: int, count: int) -> bytes:
            client.close()
            return super().read(address, count)

    with served(device) as (server, sock), Client(sock, memory=Closing(4096)) as client:
        device.on_read = lambda *_: server.session.dma_read(GUEST, 4)
        with pytest.raises(Disconnected, match="this client has been closed"):
            client.read(PLAIN, 0, 4)
