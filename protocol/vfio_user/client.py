"""The client's side: a library for programs that use a device over vfio-user."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from vfio_user.channel import Channel
from vfio_user.client_dirty import ClientDirtyPages
from vfio_user.client_migration import ClientMigration
from vfio_user.constants import (
    IO_FDS,
    Command,
    DmaFlags,
    FeatureFlags,
    IrqIndex,
    Mechanism,
    MessageFlags,
    RegionFlags,
    SetIrqsFlags,
)
from vfio_user.dma import DmaMap, DmaUnmap
from vfio_user.dma_answers import Memory, answer
from vfio_user.errors import Disconnected, ProtocolError, TimedOut, VfioUserError
from vfio_user.features import DeviceFeature
from vfio_user.getters import believed, check_same
from vfio_user.io_fds import ENTRY_48, SubRegion, descriptors, unpack_sub_regions
from vfio_user.io_fds import INFO as IO_FDS_INFO
from vfio_user.irqs import INFO as IRQ_INFO
from vfio_user.irqs import IrqInfo, SetIrqs
from vfio_user.message import Message, close_fds
from vfio_user.regions import DEVICE as DEVICE_INFO
from vfio_user.regions import REGION as REGION_INFO
from vfio_user.regions import DeviceInfo, Region, RegionInfo
from vfio_user.replies import accepted
from vfio_user.transfer import MULTI, MULTI_ENTRY, RegionAccess, RegionWrite, pack_writes
from vfio_user.version import MAJOR, MINOR, Capabilities, Version

PROPOSAL = Capabilities.of(
    max_msg_fds=Capabilities.MOST_FDS,
    max_data_xfer_size=1 << 20,
    max_dma_maps=65535,
    pgsizes=4096,
    write_multiple=True,
    io_fds=frozenset(IO_FDS),
)
"""What a client proposes unless told otherwise."""
_TRIES = 3  # of a command whose answer needs a larger argsz
_SERVED_AT_ONCE = 64  # commands of a server: one that never stops sending must not hold up the caller
_GUESS = 16  # sub-regions for which the first GET_REGION_IO_FDS makes room


class Client:
    """One device at the far end of ``sock``, which the client owns. Calls block; any thread may make them.

    Every call may raise a VfioUserError: RemoteError when the server refuses, TimedOut when it does not answer
    within ``timeout`` seconds, Disconnected when it is gone, ProtocolError when its answer is malformed.

    ``memory`` answers DMA_READ and DMA_WRITE, which may come at any time. A caller that sets it must call :meth:`poll`
    when :meth:`fileno` can be read. ``capabilities`` and ``minor`` are what the server answered to VERSION.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        timeout: float = 5.0,
        proposal: Capabilities = PROPOSAL,
        minor: int = MINOR,
        memory: Memory | None = None,
    ) -> None:
        self.memory = memory
        self._timeout = timeout
        self._lock = threading.RLock()
        self._channel = Channel(sock, proposal.max_data_xfer_size, timeout)
        self._next_id = 0
        self._sizes: dict[int, int] = {}
        self._most = proposal.max_data_xfer_size
        try:
            answer = Version.unpack(memoryview(self._request(Command.VERSION, Version(MAJOR, minor, proposal).pack())))
            if answer.major != MAJOR or answer.minor > minor:
                raise ProtocolError(f"VERSION reply: {answer.major}.{answer.minor}, proposed was {MAJOR}.{minor}")
            unasked = answer.capabilities.beyond(proposal)
            if unasked:
                raise ProtocolError(f"VERSION reply: {', '.join(unasked)} was not proposed")
        except VfioUserError:
            self.close()
            raise
        self.minor = answer.minor
        self.capabilities = answer.capabilities
        self._most = min(self._most, answer.capabilities.max_data_xfer_size)
        self.migration = ClientMigration(self._request, self.device_feature, self._most)
        self.dirty = ClientDirtyPages(self.device_feature, self._most)

    @classmethod
    def connect(cls, path: str | os.PathLike[str], *, timeout: float = 5.0, memory: Memory | None = None) -> Client:
        """Connect to the server that listens at ``path``. Raises Disconnected, with the reason, if that fails."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(timeout)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            why = error.strerror or str(error)
            raise Disconnected(f"{os.fspath(path)}: {why}; is a device being served there?") from None
        return cls(sock, timeout=timeout, memory=memory)

    def fileno(self) -> int:
        """The socket's descriptor, for an event loop; it stays owned by this object."""
        return self._channel.fileno()

    @property
    def mechanisms(self) -> frozenset[Mechanism] | None:
        """The mechanisms for sub-regions that both sides know; None if the server did not send ``io_fds``."""
        return self.capabilities.io_fds

    # -- what the device is

    def device_info(self) -> DeviceInfo:
        """DEVICE_GET_INFO: the device's flags, and how many regions and kinds of interrupt it has."""
        request = DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0)
        return DeviceInfo.unpack(memoryview(self._request(Command.DEVICE_GET_INFO, request)))

    def region_info(self, index: int) -> Region:
        """DEVICE_GET_REGION_INFO. A region with areas to map has an fd, which the caller owns and closes."""
        command, argsz = Command.DEVICE_GET_REGION_INFO, REGION_INFO.size
        for _ in range(_TRIES):
            fds: list[int] = []
            try:
                payload = memoryview(self._request(command, REGION_INFO.pack(argsz, 0, index, 0, 0, 0), reply_fds=fds))
                info, need = RegionInfo.unpack(payload)
                check_same(info.index, index, command)
                if need <= argsz:
                    self._sizes[index] = info.size
                    return Region(info, fds.pop(0) if fds and info.flags & RegionFlags.MMAP else None)
                argsz = believed(need, command)
            finally:
                close_fds(fds)
        raise ProtocolError(f"{command.name} reply: argsz grows each time, {argsz} at last")

    def io_fds(self, index: int) -> list[SubRegion]:
        """DEVICE_GET_REGION_IO_FDS: a region's sub-regions. The caller closes their fds, each once: some share one."""
        if index not in self._sizes:
            _, fd = self.region_info(index)
            if fd is not None:
                os.close(fd)
        command, argsz = Command.DEVICE_GET_REGION_IO_FDS, IO_FDS_INFO.size + _GUESS * ENTRY_48
        for _ in range(_TRIES):
            fds: list[int] = []
            try:
                payload = self._request(command, IO_FDS_INFO.pack(argsz, 0, index, 0), reply_fds=fds)
                if len(payload) < IO_FDS_INFO.size:
                    raise ProtocolError(f"{command.name} reply: {len(payload)} bytes, expected {IO_FDS_INFO.size}")
                need, _, found, _ = IO_FDS_INFO.unpack_from(payload)
                check_same(found, index, command)
                if need <= argsz:
                    subs = unpack_sub_regions(memoryview(payload), fds, self._sizes[index])
                    used: set[int] = set().union(*map(descriptors, subs))
                    fds[:] = [fd for fd in fds if fd not in used]
                    return subs
                argsz = believed(need, command)
            finally:
                close_fds(fds)
        raise ProtocolError(f"{command.name} reply: argsz grows each time, {argsz} at last")

    def irq_info(self, index: int) -> IrqInfo:
        """DEVICE_GET_IRQ_INFO: how many interrupts of a kind the device has, and what can be done with them."""
        request = IRQ_INFO.pack(IRQ_INFO.size, 0, index, 0)
        info = IrqInfo.unpack(memoryview(self._request(Command.DEVICE_GET_IRQ_INFO, request)))
        check_same(info.index, index, Command.DEVICE_GET_IRQ_INFO)
        return info

    # -- its registers

    def read(self, region: int, offset: int, count: int) -> bytes:
        """REGION_READ: ``count`` bytes at ``offset`` of a region."""
        self._check_size(count, Command.REGION_READ)
        head = RegionAccess(offset, region, count).pack()
        reply = self._request(Command.REGION_READ, head)
        if len(reply) != len(head) + count:
            raise ProtocolError(f"REGION_READ reply: {len(reply) - len(head)} bytes, expected {count}")
        return reply[len(head) :]

    def write(self, region: int, offset: int, data: bytes | memoryview, *, posted: bool = False) -> None:
        """REGION_WRITE. A posted write (No_reply) returns at once, and its failure is not reported."""
        self._check_size(len(data), Command.REGION_WRITE)
        head = RegionAccess(offset, region, len(data)).pack()
        if posted:
            self._post(Command.REGION_WRITE, head, data)
        else:
            self._request(Command.REGION_WRITE, head, data)

    @property
    def most_writes(self) -> int:
        """How many writes one :meth:`write_multi` can take; 0 if the server has not agreed to ``write_multiple``."""
        if not self.capabilities.write_multiple:
            return 0
        return max(0, (self._most - MULTI.size) // MULTI_ENTRY.size)

    def write_multi(self, writes: Sequence[RegionWrite], *, posted: bool = False) -> int:
        """REGION_WRITE_MULTI. Returns how many writes were done; for posted writes, how many were sent."""
        if not self.capabilities.write_multiple:
            raise VfioUserError("REGION_WRITE_MULTI: the server has not agreed to write_multiple", errno.ENOTSUP)
        payload = pack_writes(writes)
        self._check_size(len(payload), Command.REGION_WRITE_MULTI)
        if posted:
            self._post(Command.REGION_WRITE_MULTI, payload)
            return len(writes)
        reply = self._request(Command.REGION_WRITE_MULTI, payload)
        if len(reply) != MULTI.size:
            raise ProtocolError(f"REGION_WRITE_MULTI reply: {len(reply)} bytes, expected {MULTI.size}")
        done: int = MULTI.unpack(reply)[0]
        return done

    def reset(self) -> None:
        """DEVICE_RESET: reset the device, as a function-level reset does."""
        self._request(Command.DEVICE_RESET)

    def device_feature(self, flags: FeatureFlags, feature: int, data: bytes = b"", argsz: int = 0) -> DeviceFeature:
        """DEVICE_FEATURE. ``argsz``: bytes of room for the reply's payload, if that is larger than the request's."""
        request = DeviceFeature(flags, feature, data).pack(argsz)
        return DeviceFeature.unpack(memoryview(self._request(Command.DEVICE_FEATURE, request)))

    # -- its interrupts

    def set_irqs(self, request: SetIrqs, fds: Sequence[int] = ()) -> None:
        """DEVICE_SET_IRQS, in any form. The caller keeps the fds."""
        self._request(Command.DEVICE_SET_IRQS, request.pack(), fds=fds)

    def trigger_eventfds(self, index: int, start: int, fds: Sequence[int]) -> None:
        """Have the server signal interrupts ``start``... on these eventfds. The caller keeps the fds.

        The request is split into as many messages as the server's ``max_msg_fds`` needs.
        """
        flags = SetIrqsFlags.DATA_EVENTFD | SetIrqsFlags.TRIGGER
        most = max(1, min(self.capabilities.max_msg_fds, Capabilities.MOST_FDS))
        for at in range(0, len(fds), most):
            some = fds[at : at + most]
            self.set_irqs(SetIrqs(flags, index, start + at, len(some)), some)

    def release_eventfds(self, index: int, start: int, count: int) -> None:
        """De-assign the eventfds of interrupts ``start``...: from now on their triggers are kept pending."""
        self.set_irqs(SetIrqs(SetIrqsFlags.DATA_EVENTFD | SetIrqsFlags.TRIGGER, index, start, count))

    def unmask_eventfd(self, fd: int) -> None:
        """INTx resample: writing ``fd`` tells the server that the guest has handled the interrupt."""
        flags = SetIrqsFlags.DATA_EVENTFD | SetIrqsFlags.UNMASK
        self.set_irqs(SetIrqs(flags, IrqIndex.INTX, 0, 1), [fd])

    def mask(self, index: int, start: int = 0, count: int = 1) -> None:
        """Mask interrupts: the server keeps their triggers pending."""
        self.set_irqs(SetIrqs(SetIrqsFlags.DATA_NONE | SetIrqsFlags.MASK, index, start, count))

    def unmask(self, index: int, start: int = 0, count: int = 1) -> None:
        """Unmask interrupts. The server sends those that are pending."""
        self.set_irqs(SetIrqs(SetIrqsFlags.DATA_NONE | SetIrqsFlags.UNMASK, index, start, count))

    def disable(self, index: int) -> None:
        """Turn all interrupts of a kind off, and forget those that are pending."""
        self.set_irqs(SetIrqs(SetIrqsFlags.DATA_NONE | SetIrqsFlags.TRIGGER, index, 0, 0))

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
        flags = (DmaFlags.READ if read else DmaFlags(0)) | (DmaFlags.WRITE if write else DmaFlags(0))
        if file_io:
            flags |= DmaFlags.BY_FILE_IO
        fds = [] if fd is None else [fd]
        self._request(Command.DMA_MAP, DmaMap(flags, offset, address, size).pack(), fds=fds)

    def dma_unmap(self, address: int, size: int) -> None:
        """DMA_UNMAP of every map that lies wholly in the range. There may be none.

        The server has released them when this returns. It refuses a range that would cut a map (EINVAL).
        """
        if not size:
            raise VfioUserError("DMA_UNMAP: 0 bytes; dma_unmap_all() is for all maps")
        self._request(Command.DMA_UNMAP, DmaUnmap(address, size).pack())

    def dma_unmap_all(self) -> None:
        """DMA_UNMAP of all maps of this client."""
        self._request(Command.DMA_UNMAP, DmaUnmap(0, 0).pack())

    def poll(self, timeout: float | None = 0.0) -> None:
        """Answer the server's DMA commands. Waits for the first up to ``timeout`` seconds (None: for ever)."""
        if self._channel.fileno() < 0:
            raise Disconnected("this client has been closed")
        waiter = select.poll()
        waiter.register(self._channel, select.POLLIN)
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
        """Close the connection."""
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

    def _check_size(self, count: int, command: Command) -> None:
        """Raise VfioUserError (E2BIG) for a message that is too large: the server would close the connection."""
        if count > self._most:
            raise VfioUserError(f"{command.name}: {count} bytes, at most {self._most} fit in a message", errno.E2BIG)

    def _post(self, command: Command, *parts: bytes | memoryview) -> None:
        with self._lock:
            self._channel.send(self._new_id(), command, MessageFlags.NO_REPLY, 0, parts)
            self._serve_received()

    def _request(
        self,
        command: Command,
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
        """Handle a message that is not the awaited reply: answer a DMA command, drop a late reply."""
        close_fds(message.fds)
        if message.is_reply:
            return
        flags, error, parts = MessageFlags.REPLY, 0, []
        try:
            parts = [answer(message, self.memory, self._most)]
        except VfioUserError as refusal:
            flags, error = MessageFlags.REPLY | MessageFlags.ERROR, refusal.errno
        if not message.flags & MessageFlags.NO_REPLY:
            self._channel.send(message.id, message.command, flags, error, parts, listening=listening)
