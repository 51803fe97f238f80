"""The client's side: a library for programs that use a device over vfio-user."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from vfio_user.calls import Call, Calls, Told, read_data
from vfio_user.channel import Channel
from vfio_user.client_dirty import ClientDirtyPages
from vfio_user.client_migration import ClientMigration
from vfio_user.constants import IO_FDS, Command, FeatureFlags, Mechanism, MessageFlags, SetIrqsFlags
from vfio_user.dialects import RATIFIED, Dialect, DraftCommand
from vfio_user.dma_answers import Memory
from vfio_user.draft_dirty import DraftDirtyPages
from vfio_user.errors import Disconnected, TimedOut, VfioUserError
from vfio_user.features import DeviceFeature
from vfio_user.io_fds import SubRegion
from vfio_user.irqs import IrqInfo, SetIrqs
from vfio_user.message import Message
from vfio_user.regions import DeviceInfo, MmapArea, Region
from vfio_user.replies import Answers, accepted
from vfio_user.transfer import RegionWrite
from vfio_user.twin import TwinThread, socket_of
from vfio_user.version import MINOR, Capabilities

T = TypeVar("T")
PROPOSAL = Capabilities.of(
    max_msg_fds=Capabilities.MOST_FDS,
    max_data_xfer_size=1 << 20,
    max_dma_maps=65535,
    pgsizes=4096,
    write_multiple=True,
    io_fds=frozenset(IO_FDS),
)
"""What a client proposes unless told otherwise."""
CLOSED = "this client has been closed"
_SERVED_AT_ONCE = 64  # commands of a server: one that never stops sending must not hold up the caller


class Client:
    """One device at the far end of ``sock``, which the client owns. Calls block; any thread may make them.

    Every call may raise a VfioUserError: RemoteError when the server refuses, TimedOut when it does not answer
    within ``timeout`` seconds, Disconnected when it is gone, ProtocolError when its answer is malformed.

    ``memory`` answers DMA_READ and DMA_WRITE, which may come at any time. A caller that sets it must call :meth:`poll`
    when :meth:`fileno` can be read. ``capabilities`` and ``minor`` are what the server answered to VERSION.

    ``twin`` asks for a twin socket. If the server agrees (``capabilities.twin_socket``), a thread of the client answers
    the server's commands on it, at once. ``memory`` is then used on that thread.

    In a ``dialect`` with VM_INTERRUPT, ``interrupt`` is called with the vector of an interrupt that has no eventfd.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        timeout: float = 5.0,
        proposal: Capabilities = PROPOSAL,
        minor: int = MINOR,
        memory: Memory | None = None,
        dialect: Dialect = RATIFIED,
        interrupt: Callable[[int], None] | None = None,
        twin: bool = False,
        channel: type[Channel] = Channel,
    ) -> None:
        self._answers = Answers(memory, dialect, interrupt)
        self._timeout = timeout
        self._lock = threading.RLock()
        self._channel = channel(sock, proposal.max_data_xfer_size, timeout)
        self._next_id = 0
        self._twin: TwinThread | None = None
        self._calls = calls = Calls(proposal.with_twin() if twin else proposal, minor, dialect)
        self._access = calls.access
        self._answers.most = calls.most
        try:
            fd = self._run(calls.version())
            self.minor, self.capabilities = calls.minor, calls.capabilities
            self._answers.most = calls.most
            if fd is not None:
                self._twin = TwinThread(socket_of(fd), self._answers, timeout)
        except VfioUserError:
            self.close()
            raise
        self.migration = ClientMigration(self._request, self.device_feature, calls.most, dialect)
        self.dirty: ClientDirtyPages | DraftDirtyPages = ClientDirtyPages(self.device_feature, calls.most)
        if dialect.dirty_pages is not None:
            self.dirty = DraftDirtyPages(self._request, calls.most)

    @classmethod
    def connect(
        cls,
        path: str | os.PathLike[str],
        *,
        timeout: float = 5.0,
        memory: Memory | None = None,
        dialect: Dialect = RATIFIED,
        twin: bool = False,
    ) -> Client:
        """Connect to the server that listens at ``path``. Raises Disconnected, with the reason, if that fails."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(timeout)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            why = error.strerror or str(error)
            raise Disconnected(f"{os.fspath(path)}: {why}; is a device being served there?") from None
        return cls(sock, timeout=timeout, memory=memory, dialect=dialect, twin=twin)

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop; it stays owned by this object."""
        return self._channel.fileno()

    @property
    def memory(self) -> Memory | None:
        """What answers the server's DMA_READ and DMA_WRITE; None refuses them."""
        return self._answers.memory

    @memory.setter
    def memory(self, memory: Memory | None) -> None:
        self._answers.memory = memory

    @property
    def mechanisms(self) -> frozenset[Mechanism] | None:
        """The mechanisms for sub-regions that both sides know; None if the server did not send ``io_fds``."""
        return self.capabilities.io_fds

    # -- what the device is

    def device_info(self) -> DeviceInfo:
        """DEVICE_GET_INFO: the device's flags, and how many regions and kinds of interrupt it has."""
        return self._run(self._calls.device_info())

    def region_info(self, index: int) -> Region:
        """DEVICE_GET_REGION_INFO. A region with areas to map has an fd, which the caller owns and closes."""
        return self._run(self._calls.region_info(index))

    def io_fds(self, index: int) -> list[SubRegion]:
        """DEVICE_GET_REGION_IO_FDS: a region's sub-regions. The caller closes their fds, each once: some share one."""
        return self._run(self._calls.io_fds(index))

    def irq_info(self, index: int) -> IrqInfo:
        """DEVICE_GET_IRQ_INFO: how many interrupts of a kind the device has, and what can be done with them."""
        return self._run(self._calls.irq_info(index))

    # -- its registers

    def read(self, region: int, offset: int, count: int) -> bytes:
        """REGION_READ: ``count`` bytes at ``offset`` of a region."""
        head = self._access(Command.REGION_READ, region, offset, count)
        return read_data(self._request(Command.REGION_READ, head), len(head), count)

    def write(self, region: int, offset: int, data: bytes | memoryview, *, posted: bool = False) -> None:
        """REGION_WRITE. A posted write (No_reply) returns at once, and its failure is not reported."""
        if not isinstance(data, bytes):
            data = memoryview(data).cast("B")
        head = self._access(Command.REGION_WRITE, region, offset, len(data))
        if posted:
            self._post(Command.REGION_WRITE, head, data)
        else:
            self._request(Command.REGION_WRITE, head, data)

    @property
    def most_writes(self) -> int:
        """How many writes one :meth:`write_multi` can take; 0 if the server has not agreed to ``write_multiple``."""
        return self._calls.most_writes

    def write_multi(self, writes: Sequence[RegionWrite], *, posted: bool = False) -> int:
        """REGION_WRITE_MULTI. Returns how many writes were done; for posted writes, how many were sent."""
        if not posted:
            return self._run(self._calls.write_multi(writes))
        self._post(Command.REGION_WRITE_MULTI, self._calls.packed_writes(writes))
        return len(writes)

    def reset(self) -> None:
        """DEVICE_RESET: reset the device, as a function-level reset does."""
        self._run(self._calls.reset())

    def device_feature(self, flags: FeatureFlags, feature: int, data: bytes = b"", argsz: int = 0) -> DeviceFeature:
        """DEVICE_FEATURE. ``argsz``: bytes of room for the reply's payload, if that is larger than the request's."""
        return self._run(self._calls.device_feature(flags, feature, data, argsz))

    def dma_buf(self, region: int, ranges: Sequence[MmapArea]) -> int:
        """DEVICE_FEATURE, DMA_BUF: areas of a region as a dma-buf, which the caller owns, for DMA of other devices.

        ``ranges`` are whole pages inside areas. The server needs a kernel with udmabuf (ENOTSUP).
        """
        return self._run(self._calls.dma_buf(region, ranges))

    # -- its interrupts

    def set_irqs(self, request: SetIrqs, fds: Sequence[int] = ()) -> None:
        """DEVICE_SET_IRQS, in any form. The caller keeps the fds."""
        self._run(self._calls.set_irqs(request, fds))

    def trigger_eventfds(self, index: int, start: int, fds: Sequence[int]) -> None:
        """Have the server signal interrupts ``start``... on these eventfds. The caller keeps the fds.

        The request is split into as many messages as the server's ``max_msg_fds`` needs.
        """
        self._run(self._calls.trigger_eventfds(index, start, fds))

    def release_eventfds(self, index: int, start: int, count: int) -> None:
        """De-assign the eventfds of interrupts ``start``...: from now on their triggers are kept pending."""
        self._run(self._calls.release_eventfds(index, start, count))

    def unmask_eventfd(self, fd: int) -> None:
        """INTx resample: writing ``fd`` tells the server that the guest has handled the interrupt."""
        self._run(self._calls.unmask_eventfd(fd))

    def mask(self, index: int, start: int = 0, count: int = 1) -> None:
        """Mask interrupts: the server keeps their triggers pending."""
        self._run(self._calls.act(SetIrqsFlags.MASK, index, start, count))

    def unmask(self, index: int, start: int = 0, count: int = 1) -> None:
        """Unmask interrupts. The server sends those that are pending."""
        self._run(self._calls.act(SetIrqsFlags.UNMASK, index, start, count))

    def disable(self, index: int) -> None:
        """Turn all interrupts of a kind off, and forget those that are pending."""
        self._run(self._calls.act(SetIrqsFlags.TRIGGER, index, 0, 0))

    # -- its view of memory

    def dma_map(
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
        """DMA_MAP. Without ``fd`` the server asks for the memory by message. The caller keeps the fd.

        ``file_io``: the server shall read and write the file, which cannot be mapped. Not all servers know this.
        """
        self._run(self._calls.dma_map(address, size, fd, offset, read=read, write=write, file_io=file_io))

    def dma_unmap(self, address: int, size: int) -> None:
        """DMA_UNMAP of every map that lies wholly in the range. There may be none.

        The server has released them when this returns. It refuses a range that would cut a map (EINVAL).
        """
        self._run(self._calls.dma_unmap(address, size))

    def dma_unmap_all(self) -> None:
        """DMA_UNMAP of all maps of this client."""
        self._run(self._calls.dma_unmap_all())

    def poll(self, timeout: float | None = 0.0) -> None:
        """Answer the server's DMA commands. Waits for the first up to ``timeout`` seconds (None: for ever)."""
        if (fd := self.fileno()) < 0:
            raise Disconnected(CLOSED)
        waiter = select.poll()
        waiter.register(fd, select.POLLIN)
        if not self._channel.ready and not waiter.poll(None if timeout is None else timeout * 1000):
            return
        with self._lock:
            for _ in range(_SERVED_AT_ONCE):
                message = self._channel.receive()
                if message is None:
                    return
                self._serve(message)
            self._serve_received()

    def close(self) -> None:
        """Close the connection. What other threads wait in raises Disconnected. A ``memory`` ends its answer first."""
        twin, self._twin = self._twin, None
        if twin is not None:
            twin.close()
        self._channel.break_off(CLOSED)
        with self._lock:
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- messages

    def _new_id(self) -> int:
        self._next_id = (self._next_id + 1) & 0xFFFF
        return self._next_id

    def _run(self, call: Call[T]) -> T:
        """Hold a conversation, and return its result."""
        try:
            ask = next(call)
            while True:
                fds: list[int] = []
                payload = self._request(ask.command, *ask.parts, fds=ask.fds, reply_fds=fds)
                ask = call.send(Told(payload, fds))
        except StopIteration as end:
            result: T = end.value
            return result

    def _post(self, command: Command, *parts: bytes | memoryview) -> None:
        with self._lock:
            self._channel.send(self._new_id(), command, MessageFlags.NO_REPLY, 0, parts)
            self._serve_received()

    def _request(
        self,
        command: Command | DraftCommand,
        *parts: bytes | memoryview,
        fds: Sequence[int] = (),
        reply_fds: list[int] | None = None,
    ) -> bytes:
        """Send a command and wait for its reply's payload. Its fds go to ``reply_fds``, else they are closed."""
        with self._lock:
            number = self._new_id()
            self._channel.send(number, command, 0, 0, parts, fds)
            deadline = time.monotonic() + self._timeout
            while True:
                message = self._channel.receive_by(deadline)
                if not message.is_reply or message.id != number:
                    self._serve(message)
                    if time.monotonic() >= deadline:
                        raise TimedOut(f"the peer sends all kinds of things, but no reply to {command.name}")
                    continue
                try:
                    return accepted(message, command, reply_fds)
                finally:
                    self._serve_received()

    def _serve_received(self) -> None:
        """Serve the messages that are already in the buffer: a poll of the socket does not show them.

        After :data:`_SERVED_AT_ONCE` of them, sending an answer receives nothing more: a server that sends without end
        would keep the caller here.
        """
        served = 0
        while self._channel.ready and (message := self._channel.receive()):
            self._serve(message, listening=served < _SERVED_AT_ONCE)
            served += 1

    def _serve(self, message: Message, *, listening: bool = True) -> None:
        """Handle a message that is not the awaited reply: answer a command, drop a late reply."""
        self._answers.serve(message, self._channel, listening=listening)
