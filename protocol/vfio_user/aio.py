"""The client's side for asyncio: ``vfio_user.aio.Client`` has the calls of :class:`vfio_user.Client` to be awaited.

It has no ``migration`` and no ``dirty``: a program that moves devices uses the blocking client.

Calls of several tasks are sent in the order in which they are made, and do not wait for each other's replies: the
server answers in that order. Commands of the server are answered between other events of the loop, also while a call
waits.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from vfio_user.calls import Ask, Call, Calls, Told, read_data
from vfio_user.client import CLOSED, PROPOSAL
from vfio_user.constants import Command, FeatureFlags, Mechanism, MessageFlags, SetIrqsFlags
from vfio_user.dialects import RATIFIED, Dialect
from vfio_user.dma_answers import Memory
from vfio_user.errors import Disconnected, TimedOut, VfioUserError
from vfio_user.features import DeviceFeature
from vfio_user.io_fds import SubRegion
from vfio_user.irqs import IrqInfo, SetIrqs
from vfio_user.message import Message, close_fds
from vfio_user.queued_channel import QueuedChannel
from vfio_user.regions import DeviceInfo, MmapArea, Region
from vfio_user.replies import Answers, accepted
from vfio_user.transfer import RegionWrite
from vfio_user.twin import socket_of
from vfio_user.version import MINOR, Capabilities

T = TypeVar("T")
_SERVED_AT_ONCE = 64  # messages of a server, before other events of the loop have their turn


class Client:
    """One device at the far end of a socket, which the client owns. Make it by :meth:`open` or :meth:`connect`.

    All is done on the loop's thread. Every call may raise a VfioUserError, as those of :class:`vfio_user.Client` do. A
    call that is cancelled has been sent all the same; its reply is dropped. ``memory`` answers DMA_READ and DMA_WRITE.
    """

    def __init__(self, sock: socket.socket, calls: Calls, answers: Answers, timeout: float, most: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls = calls
        self._answers = answers
        self._timeout = timeout
        self._room = asyncio.Event()
        self._channels: list[QueuedChannel] = []
        self._channel = self._watch(sock, most)
        self._next_id = 0
        self._awaited: dict[int, asyncio.Future[Message]] = {}
        self._gone: VfioUserError | None = None

    @classmethod
    async def open(
        cls,
        sock: socket.socket,
        *,
        timeout: float = 5.0,
        proposal: Capabilities = PROPOSAL,
        minor: int = MINOR,
        memory: Memory | None = None,
        dialect: Dialect = RATIFIED,
        interrupt: Callable[[int], None] | None = None,
        twin: bool = False,
    ) -> Client:
        """Introduce a client to the server behind ``sock``. The parameters are those of :class:`vfio_user.Client`."""
        calls = Calls(proposal.with_twin() if twin else proposal, minor, dialect)
        answers = Answers(memory, dialect, interrupt)
        answers.most = calls.most
        client = cls(sock, calls, answers, timeout, calls.most)
        try:
            fd = await client._run(calls.version())
            answers.most = calls.most
            if fd is not None:
                client._watch(socket_of(fd), calls.most)
        except BaseException:
            client.close()
            raise
        return client

    @classmethod
    async def connect(
        cls,
        path: str | os.PathLike[str],
        *,
        timeout: float = 5.0,
        memory: Memory | None = None,
        dialect: Dialect = RATIFIED,
        twin: bool = False,
    ) -> Client:
        """Connect to the server that listens at ``path``. Raises Disconnected, with the reason, if that fails."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, os.fspath(path)), timeout)
        except OSError as error:
            sock.close()
            why = error.strerror or str(error) or "it takes no connection in time"
            raise Disconnected(f"{os.fspath(path)}: {why}; is a device being served there?") from None
        except BaseException:
            sock.close()
            raise
        return await cls.open(sock, timeout=timeout, memory=memory, dialect=dialect, twin=twin)

    @property
    def capabilities(self) -> Capabilities:
        """What the server answered to VERSION."""
        return self._calls.capabilities

    @property
    def minor(self) -> int:
        """The minor version that the server answered."""
        return self._calls.minor

    @property
    def mechanisms(self) -> frozenset[Mechanism] | None:
        """The mechanisms for sub-regions that both sides know; None if the server did not send ``io_fds``."""
        return self.capabilities.io_fds

    # -- what the device is

    async def device_info(self) -> DeviceInfo:
        """DEVICE_GET_INFO: the device's flags, and how many regions and kinds of interrupt it has."""
        return await self._run(self._calls.device_info())

    async def region_info(self, index: int) -> Region:
        """DEVICE_GET_REGION_INFO. A region with areas to map has an fd, which the caller owns and closes."""
        return await self._run(self._calls.region_info(index))

    async def io_fds(self, index: int) -> list[SubRegion]:
        """DEVICE_GET_REGION_IO_FDS: a region's sub-regions. The caller closes their fds, each once: some share one."""
        return await self._run(self._calls.io_fds(index))

    async def irq_info(self, index: int) -> IrqInfo:
        """DEVICE_GET_IRQ_INFO: how many interrupts of a kind the device has, and what can be done with them."""
        return await self._run(self._calls.irq_info(index))

    # -- its registers

    async def read(self, region: int, offset: int, count: int) -> bytes:
        """REGION_READ: ``count`` bytes at ``offset`` of a region."""
        head = self._calls.access(Command.REGION_READ, region, offset, count)
        payload, fds = await self._request(Ask(Command.REGION_READ, (head,)))
        close_fds(fds)
        return read_data(payload, len(head), count)

    async def write(self, region: int, offset: int, data: bytes | memoryview, *, posted: bool = False) -> None:
        """REGION_WRITE. A posted write (No_reply) returns once it is sent, and its failure is not reported."""
        if not isinstance(data, bytes):
            data = memoryview(data).cast("B")
        parts = (self._calls.access(Command.REGION_WRITE, region, offset, len(data)), data)
        if posted:
            await self._post(Ask(Command.REGION_WRITE, parts))
        else:
            close_fds((await self._request(Ask(Command.REGION_WRITE, parts))).fds)

    @property
    def most_writes(self) -> int:
        """How many writes one :meth:`write_multi` can take; 0 if the server has not agreed to ``write_multiple``."""
        return self._calls.most_writes

    async def write_multi(self, writes: Sequence[RegionWrite], *, posted: bool = False) -> int:
        """REGION_WRITE_MULTI. Returns how many writes were done; for posted writes, how many were sent."""
        if not posted:
            return await self._run(self._calls.write_multi(writes))
        await self._post(Ask(Command.REGION_WRITE_MULTI, (self._calls.packed_writes(writes),)))
        return len(writes)

    async def reset(self) -> None:
        """DEVICE_RESET: reset the device, as a function-level reset does."""
        await self._run(self._calls.reset())

    async def device_feature(
        self, flags: FeatureFlags, feature: int, data: bytes = b"", argsz: int = 0
    ) -> DeviceFeature:
        """DEVICE_FEATURE. ``argsz``: bytes of room for the reply's payload, if that is larger than the request's."""
        return await self._run(self._calls.device_feature(flags, feature, data, argsz))

    async def dma_buf(self, region: int, ranges: Sequence[MmapArea]) -> int:
        """DEVICE_FEATURE, DMA_BUF: areas of a region as a dma-buf, which the caller owns, for DMA of other devices.

        ``ranges`` are whole pages inside areas. The server needs a kernel with udmabuf (ENOTSUP).
        """
        return await self._run(self._calls.dma_buf(region, ranges))

    # -- its interrupts

    async def set_irqs(self, request: SetIrqs, fds: Sequence[int] = ()) -> None:
        """DEVICE_SET_IRQS, in any form. The caller keeps the fds."""
        await self._run(self._calls.set_irqs(request, fds))

    async def trigger_eventfds(self, index: int, start: int, fds: Sequence[int]) -> None:
        """Have the server signal interrupts ``start``... on these eventfds. The caller keeps the fds."""
        await self._run(self._calls.trigger_eventfds(index, start, fds))

    async def release_eventfds(self, index: int, start: int, count: int) -> None:
        """De-assign the eventfds of interrupts ``start``...: from now on their triggers are kept pending."""
        await self._run(self._calls.release_eventfds(index, start, count))

    async def unmask_eventfd(self, fd: int) -> None:
        """INTx resample: writing ``fd`` tells the server that the guest has handled the interrupt."""
        await self._run(self._calls.unmask_eventfd(fd))

    async def mask(self, index: int, start: int = 0, count: int = 1) -> None:
        """Mask interrupts: the server keeps their triggers pending."""
        await self._run(self._calls.act(SetIrqsFlags.MASK, index, start, count))

    async def unmask(self, index: int, start: int = 0, count: int = 1) -> None:
        """Unmask interrupts. The server sends those that are pending."""
        await self._run(self._calls.act(SetIrqsFlags.UNMASK, index, start, count))

    async def disable(self, index: int) -> None:
        """Turn all interrupts of a kind off, and forget those that are pending."""
        await self._run(self._calls.act(SetIrqsFlags.TRIGGER, index, 0, 0))

    # -- its view of memory

    async def dma_map(
        self,
        address: int,
        size: int,
        fd: int | None = None,
        offset: int = 0,
        *,
        read: bool = True,
        write: bool = True,
        file_io: bool = False,
    ) -> None:
        """DMA_MAP, as :meth:`vfio_user.Client.dma_map`. The caller keeps the fd."""
        await self._run(self._calls.dma_map(address, size, fd, offset, read=read, write=write, file_io=file_io))

    async def dma_unmap(self, address: int, size: int) -> None:
        """DMA_UNMAP of every map that lies wholly in the range. The server has released them when this returns."""
        await self._run(self._calls.dma_unmap(address, size))

    async def dma_unmap_all(self) -> None:
        """DMA_UNMAP of all maps of this client."""
        await self._run(self._calls.dma_unmap_all())

    def close(self) -> None:
        """Close the connection. Calls that wait raise Disconnected."""
        self._end(Disconnected(CLOSED))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- messages

    async def _run(self, call: Call[T]) -> T:
        """Hold a conversation, and return its result."""
        try:
            ask = next(call)
            while True:
                ask = call.send(await self._request(ask))
        except StopIteration as end:
            result: T = end.value
            return result

    async def _post(self, ask: Ask) -> None:
        """Send a command that wants no reply. Waits while much is unsent, because the server does not read."""
        self._send(ask, MessageFlags.NO_REPLY)
        while self._channel.full and self._gone is None:
            self._room.clear()
            try:
                await asyncio.wait_for(self._room.wait(), self._timeout)
            except TimeoutError:
                raise TimedOut(f"the peer does not read {ask.command.name}") from None

    async def _request(self, ask: Ask) -> Told:
        """Send a command, and wait for its reply."""
        number = self._send(ask, MessageFlags(0))
        waiting = self._awaited[number] = self._loop.create_future()
        try:
            message = await asyncio.wait_for(waiting, self._timeout)
        except TimeoutError:
            raise TimedOut(f"the peer does not answer {ask.command.name}") from None
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                close_fds(waiting.result().fds)  # the reply has come, and nobody takes it
            raise
        finally:
            if self._awaited.get(number) is waiting:
                del self._awaited[number]
        fds: list[int] = []
        return Told(accepted(message, ask.command, fds), fds)

    def _send(self, ask: Ask, flags: MessageFlags) -> int:
        """Send a command, or queue it. Returns its number."""
        if self._gone is not None:
            raise self._gone.again()
        self._next_id = (self._next_id + 1) & 0xFFFF
        if self._next_id in self._awaited:
            raise VfioUserError(f"{ask.command.name}: {len(self._awaited)} calls wait for their replies")
        self._channel.send(self._next_id, ask.command, flags, 0, ask.parts, ask.fds)
        return self._next_id

    def _watch(self, sock: socket.socket, most: int) -> QueuedChannel:
        channel = QueuedChannel(sock, most, self._hold)
        self._channels.append(channel)
        self._loop.add_reader(channel.fileno(), self._receive, channel)
        return channel

    def _hold(self, channel: QueuedChannel) -> None:
        """Send the rest when the socket takes more. A server that does not read its replies is not read from."""
        self._loop.add_writer(channel.fileno(), self._flush, channel)
        if channel.full:
            self._loop.remove_reader(channel.fileno())

    def _flush(self, channel: QueuedChannel) -> None:
        try:
            sent = channel.flush()
        except VfioUserError as error:
            self._end(error)
            return
        if sent:
            self._loop.remove_writer(channel.fileno())
        if not channel.full:
            self._loop.add_reader(channel.fileno(), self._receive, channel)
            self._loop.call_soon(self._receive, channel)  # what was received before, no reader reports
            self._room.set()

    def _receive(self, channel: QueuedChannel) -> None:
        """Handle the messages that have come. If the memory raises, the client ends, and the loop is told."""
        if self._gone is not None:
            return
        try:
            for _ in range(_SERVED_AT_ONCE):
                message = None if channel.full else channel.receive()
                if message is None:
                    return
                self._handle(message, channel)
        except VfioUserError as error:
            self._end(error)
            return
        except Exception:
            self._end(Disconnected("the memory or interrupt of this client has raised an error"))
            raise
        if channel.ready:
            self._loop.call_soon(self._receive, channel)

    def _handle(self, message: Message, channel: QueuedChannel) -> None:
        waiting = self._awaited.pop(message.id, None) if message.is_reply and channel is self._channel else None
        if waiting is None or waiting.done():
            self._answers.serve(message, channel)
            return
        kept = message._replace(payload=memoryview(bytes(message.payload)))  # the next receive uses the buffer again
        waiting.set_result(kept)

    def _end(self, why: VfioUserError) -> None:
        """Close everything, and let all calls raise ``why``."""
        if self._gone is None:
            self._gone = why
            for channel in self._channels:
                self._loop.remove_reader(channel.fileno())
                self._loop.remove_writer(channel.fileno())
                channel.close()
            self._room.set()
        for waiting in self._awaited.values():
            if not waiting.done():
                waiting.set_exception(why.again())
        self._awaited.clear()
