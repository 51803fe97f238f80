"""The asyncio client: the calls of the blocking one, many at a time, and a loop that never waits for a server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import closing
from inspect import getmembers, isfunction, signature
from traceback import walk_tb
from typing import Any

import pytest

from protocol.backend import (
    DEADLINE,
    ERROR,
    MAPPED,
    NO_REPLY,
    PLAIN,
    REPLY,
    FakeDevice,
    Wire,
    fd_count,
    message,
    served,
)
from protocol.conftest import ANSWER
from protocol.guest import GUEST, GuestMemory
from protocol.set_irqs import MSIX, count
from vfio_user import (
    DRAFT_2021,
    Client,
    Command,
    Disconnected,
    IoEventFd,
    ProtocolError,
    RegionWrite,
    RemoteError,
    TimedOut,
    VfioUserError,
    aio,
)

THREADS = {"poll", "fileno", "connect"}
"""What only the blocking client has; ``connect`` is a class method of both."""


def test_it_has_the_calls_of_the_blocking_client_with_the_same_parameters() -> None:
    for name, function in getmembers(Client, isfunction):
        if not name.startswith("_") and name not in THREADS:
            assert signature(getattr(aio.Client, name)).parameters == signature(function).parameters, name


def run(sock: socket.socket, work: Callable[[aio.Client], Awaitable[Any]], **options: Any) -> Any:
    async def main() -> Any:
        async with await aio.Client.open(sock, **options) as client:
            return await work(client)

    return asyncio.run(main())


def test_our_server_answers_each_call(
    device: FakeDevice, eventfd: Callable[[], int], memfd: Callable[[int], int]
) -> None:
    device.subs[PLAIN] = [IoEventFd(0, 4, eventfd())]
    fd = eventfd()

    async def work(client: aio.Client) -> None:
        assert (client.minor, client.mechanisms) == (2, client.capabilities.io_fds)
        assert (await client.device_info()).num_regions == 9
        region = await client.region_info(MAPPED)
        assert (region.info.size, len(region.info.areas)) == (16384, 2)
        assert region.fd is not None
        os.close(region.fd)
        (sub,) = await client.io_fds(PLAIN)
        os.close(sub.fd)
        assert (await client.irq_info(MSIX)).count == 8
        await client.write(PLAIN, 8, b"abcd")
        await client.write(PLAIN, 12, b"efgh", posted=True)
        assert await client.write_multi([RegionWrite(PLAIN, 16, b"ij")]) == 1
        assert await client.write_multi([RegionWrite(PLAIN, 18, b"kl")], posted=True) == 1
        assert client.most_writes > 1000
        assert await client.read(PLAIN, 8, 12) == b"abcdefghijkl"
        await client.trigger_eventfds(MSIX, 0, [fd] * 8)
        for step in (client.mask(MSIX), client.unmask(MSIX), client.release_eventfds(MSIX, 1, 7)):
            await step
        assert server.session.irqs.trigger(MSIX, 0)
        assert count(fd) == 1
        await client.disable(MSIX)
        await client.dma_map(0x1000, 4096, memfd(4096))
        await client.dma_map(0x4000, 4096)
        await client.dma_unmap(0x1000, 4096)
        assert len(server.session.dma) == 1
        await client.dma_unmap_all()
        await client.reset()
        with pytest.raises(RemoteError, match="REGION_READ"):
            await client.read(8, 0, 4)

    with served(device) as (server, sock):
        run(sock, work)


def test_many_calls_wait_at_a_time_and_get_their_own_answers(device: FakeDevice) -> None:
    async def work(client: aio.Client) -> None:
        found = await asyncio.gather(*(client.read(PLAIN, at, 4) for at in range(0, 4000, 4)))
        assert b"".join(found) == device.memory[PLAIN][:4000]

    device.memory[PLAIN][:] = os.urandom(4096)
    with served(device) as (_, sock):
        run(sock, work)


@pytest.mark.parametrize("twin", [False, True])
def test_dma_messages_are_answered_while_a_call_waits_and_while_none_does(device: FakeDevice, twin: bool) -> None:
    memory = GuestMemory(1 << 20)

    async def work(client: aio.Client) -> None:
        assert client.capabilities.twin_socket == twin
        device.on_read = lambda *_: server.session.dma_read(GUEST, 8)
        assert await client.read(PLAIN, 0, 8) == memory.data[:8]
        future = server.call(lambda: server.session.dma_read(GUEST, 1 << 20))
        assert await asyncio.wrap_future(future) == memory.data

    with served(device) as (server, sock):
        run(sock, work, memory=memory, twin=twin)


def test_it_speaks_the_draft(device: FakeDevice) -> None:
    raised: list[int] = []

    async def work(client: aio.Client) -> None:
        device.on_write = lambda *_: print(server.session.irqs.trigger(MSIX, 3))
        await client.write(PLAIN, 0, b"ring")
        await client.reset()

    with served(device, dialect=DRAFT_2021) as (server, sock):
        run(sock, work, dialect=DRAFT_2021, interrupt=raised.append)
    assert raised == [3]


def talk(work: Callable[[aio.Client, Wire], Awaitable[Any]], answer: bytes = ANSWER, **options: Any) -> Any:
    """A client, and a raw server on the test's own thread."""
    ours, theirs = socket.socketpair()
    with closing(Wire(theirs)) as wire:
        wire.raw(message(Command.VERSION, answer, flags=REPLY))

        async def both(client: aio.Client) -> Any:
            wire.receive()
            return await work(client, wire)

        return run(ours, both, **options)


def test_a_reply_that_never_comes_times_out_and_one_that_comes_late_is_passed_over() -> None:
    async def work(client: aio.Client, wire: Wire) -> None:
        with pytest.raises(TimedOut, match="DEVICE_RESET"):
            await client.reset()
        late = wire.receive()
        again = asyncio.create_task(client.reset())
        await asyncio.sleep(0)
        wire.reply(late)
        wire.reply(wire.receive())
        await again

    talk(work, timeout=0.05)


def test_a_cancelled_call_gives_its_descriptors_back() -> None:
    async def work(client: aio.Client, wire: Wire) -> None:
        task = asyncio.create_task(client.region_info(0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = fd_count()
        wire.reply(wire.receive(), bytes(32), fds=[wire.sock.fileno()])
        reset = asyncio.create_task(client.reset())
        await asyncio.sleep(0)
        wire.reply(wire.receive())
        await reset
        assert fd_count() == before

    talk(work)


def test_calls_that_wait_learn_that_the_server_has_gone() -> None:
    async def work(client: aio.Client, wire: Wire) -> None:
        calls = [asyncio.create_task(client.read(0, 0, 4)) for _ in range(3)]
        await asyncio.sleep(0)
        wire.sock.shutdown(socket.SHUT_RDWR)
        for found in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(found, Disconnected)
        with pytest.raises(Disconnected):
            await client.reset()

    talk(work)


@pytest.mark.slow
def test_a_server_that_does_not_read_holds_up_its_calls_and_not_the_loop(memfd: Callable[[int], int]) -> None:
    async def work(client: aio.Client, wire: Wire) -> None:
        data = os.urandom(1 << 20)
        posts = [client.write(0, 0, data, posted=True) for _ in range(20)]
        ends = await asyncio.gather(*posts, return_exceptions=True)
        assert "the peer does not read REGION_WRITE" in {str(error) for error in ends if isinstance(error, TimedOut)}
        assert client._channel.unsent > 16 << 20
        fd = memfd(4096)
        task = asyncio.create_task(client.dma_map(0, 4096, fd))
        await asyncio.sleep(0)
        while (found := await asyncio.to_thread(wire.receive)).command == Command.REGION_WRITE:
            assert found.payload[16:] == data
        assert (found.command, len(found.fds)) == (Command.DMA_MAP, 1)
        assert os.fstat(found.fds[0]).st_ino == os.fstat(fd).st_ino
        wire.reply(found)
        await task

    talk(work, timeout=0.3)


@pytest.mark.slow
def test_a_server_that_asks_and_does_not_read_is_not_read_from_until_it_does() -> None:
    memory = GuestMemory(1 << 16)

    async def work(client: aio.Client, wire: Wire) -> None:
        asked = message(Command.DMA_READ, struct.pack("<QQ", GUEST, 1 << 16))
        wire.sock.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 100_000:
                wire.raw(asked)
                sent += 1
                await asyncio.sleep(0)
        assert sent < 100_000
        assert client._channel.unsent < 18 << 20
        wire.sock.settimeout(DEADLINE)
        for _ in range(sent):
            found = await asyncio.to_thread(wire.receive)
            assert found.payload[16:] == memory.data

    talk(work, memory=memory)


@pytest.mark.parametrize("answer", [b"", struct.pack("<HH", 1, 0), struct.pack("<HH", 0, 3)])
def test_a_version_that_cannot_be_ends_the_connection(answer: bytes) -> None:
    before = fd_count()
    with pytest.raises(ProtocolError, match="VERSION"):
        talk(lambda client, wire: asyncio.sleep(0), answer)
    assert fd_count() == before


def test_a_command_that_no_server_sends_is_refused() -> None:
    async def work(client: aio.Client, wire: Wire) -> None:
        wire.send(Command.DEVICE_RESET)
        found = await asyncio.to_thread(wire.receive)
        assert found[1:4] == (Command.DEVICE_RESET, REPLY | ERROR, errno.EINVAL)
        wire.send(Command.DEVICE_RESET, flags=NO_REPLY)

    talk(work)


def test_connecting_to_nothing_says_so(tmp_path: Any) -> None:
    async def main() -> None:
        with pytest.raises(Disconnected, match="is a device being served there"):
            await aio.Client.connect(tmp_path / "nothing")

    asyncio.run(main())


def test_a_connection_is_made_by_path(device: FakeDevice, tmp_path: Any) -> None:
    async def main(server: asyncio.Task[Any] | None = None) -> None:
        listener = socket.socket(socket.AF_UNIX)
        with closing(listener):
            listener.bind(str(tmp_path / "s"))
            listener.listen()
            task = asyncio.create_task(aio.Client.connect(tmp_path / "s"))
            sock, _ = await asyncio.to_thread(listener.accept)
            with closing(Wire(sock)) as wire:
                asked = await asyncio.to_thread(wire.receive)
                wire.reply(asked, ANSWER)
                (await task).close()

    asyncio.run(main())


def test_nothing_stays_of_a_client(device: FakeDevice) -> None:
    before = fd_count()
    with served(device) as (_, sock):
        run(sock, lambda client: client.reset(), twin=True)
    assert fd_count() == before


def test_too_many_calls_at_a_time_are_refused() -> None:
    async def work(client: aio.Client, wire: Wire) -> None:
        client._awaited = dict.fromkeys(range(1 << 16), client._loop.create_future())
        with pytest.raises(VfioUserError, match="65536 calls wait"):
            await client.reset()
        client._awaited.clear()

    talk(work)


def test_calls_after_the_end_keep_nothing_of_earlier_ones(device: FakeDevice) -> None:
    async def depth(client: aio.Client) -> int:
        with pytest.raises(Disconnected, match="this client has been closed") as raised:
            await client.write(PLAIN, 0, b"data")
        return len(list(walk_tb(raised.value.__traceback__)))

    async def work(client: aio.Client) -> None:
        client.close()
        first = await depth(client)
        assert [await depth(client) for _ in range(3)] == [first] * 3

    ours, theirs = socket.socketpair()
    with closing(Wire(theirs)) as wire:
        wire.raw(message(Command.VERSION, ANSWER, flags=REPLY))
        run(ours, work)


def test_each_call_that_waits_gets_an_error_of_its_own() -> None:
    async def work(client: aio.Client) -> None:
        calls = [asyncio.ensure_future(client.reset()) for _ in range(3)]
        await asyncio.sleep(0)
        client.close()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [str(error) for error in errors] == ["this client has been closed"] * 3
        assert len(set(map(id, errors))) == 3

    ours, theirs = socket.socketpair()
    with closing(Wire(theirs)) as wire:
        wire.raw(message(Command.VERSION, ANSWER, flags=REPLY))
        run(ours, work)


def test_a_memory_that_raises_ends_the_client_and_the_loop_is_told() -> None:
    class Broken(GuestMemory):
        def read(self, address: int, count: int) -> bytes:
            raise ZeroDivisionError

    told: list[Any] = []

    async def work(client: aio.Client) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
        wire.send(Command.DMA_READ, struct.pack("<QQ", GUEST, 4))
        with pytest.raises(Disconnected, match="memory or interrupt of this client has raised an error"):
            await client.read(PLAIN, 0, 4)
        with pytest.raises(Disconnected, match="memory or interrupt of this client has raised an error"):
            await client.reset()

    ours, theirs = socket.socketpair()
    with closing(Wire(theirs)) as wire:
        wire.raw(message(Command.VERSION, ANSWER, flags=REPLY))
        run(ours, work, memory=Broken(4096))
        assert [type(error) for error in told] == [ZeroDivisionError]
