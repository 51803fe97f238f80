"""What a client asks a server, and how it reads the answers: the part of a client that needs no socket.

Each method is a conversation: a generator that yields what to send, is sent the reply, and returns the result. The
blocking client and the asyncio client run the same ones.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

from vfio_user.constants import Command, DmaFlags, Feature, FeatureFlags, IrqIndex, RegionFlags, SetIrqsFlags
from vfio_user.dialects import Dialect, DraftCommand
from vfio_user.dma import DmaMap, DmaUnmap
from vfio_user.dma_bufs import DmaBufRequest
from vfio_user.errors import ProtocolError, VfioUserError
from vfio_user.features import DeviceFeature
from vfio_user.getters import believed, check_same
from vfio_user.io_fds import ENTRY_48, SubRegion, descriptors, unpack_sub_regions
from vfio_user.io_fds import INFO as IO_FDS_INFO
from vfio_user.irqs import INFO as IRQ_INFO
from vfio_user.irqs import IrqInfo, SetIrqs
from vfio_user.message import close_fds
from vfio_user.regions import DEVICE as DEVICE_INFO
from vfio_user.regions import REGION as REGION_INFO
from vfio_user.regions import DeviceInfo, MmapArea, Region, RegionInfo
from vfio_user.transfer import MULTI, MULTI_ENTRY, RegionAccess, RegionWrite, pack_writes
from vfio_user.version import MAJOR, Capabilities, Version

_TRIES = 3  # of a command whose answer needs a larger argsz
_GUESS = 16  # sub-regions for which the first GET_REGION_IO_FDS makes room

T = TypeVar("T")


class Ask(NamedTuple):
    """A command to send. The caller of the client keeps the ``fds``."""

    command: Command | DraftCommand
    parts: Sequence[bytes | memoryview] = ()
    fds: Sequence[int] = ()


class Told(NamedTuple):
    """The payload of its reply, and the descriptors that came with it. The conversation owns them."""

    payload: bytes
    fds: list[int]


Call = Generator[Ask, Told, T]


class Calls:
    """The conversations of one client, which proposes ``proposal`` and version 0.``minor``.

    They raise VfioUserError for what cannot be asked, and ProtocolError for an answer that cannot be.
    """

    def __init__(self, proposal: Capabilities, minor: int, dialect: Dialect) -> None:
        self.dialect = dialect
        self.minor = minor
        self.capabilities = Capabilities()
        self.most = proposal.max_data_xfer_size
        """The most bytes of data in a message."""
        self._proposal = dialect.within(proposal)
        self._sizes: dict[int, int] = {}

    def version(self) -> Call[int | None]:
        """VERSION. Returns the client's end of the twin socket, which the caller owns; None without one."""
        request = Version(MAJOR, self.minor, self._proposal).pack()
        payload, fds = yield Ask(Command.VERSION, (request,))
        try:
            answer = Version.unpack(memoryview(payload))
            ours = answer.capabilities
            if answer.major != MAJOR or answer.minor > self.minor:
                raise ProtocolError(f"VERSION reply: {answer.major}.{answer.minor}, proposed was {MAJOR}.{self.minor}")
            unasked = ours.beyond(self._proposal)
            if unasked:
                raise ProtocolError(f"VERSION reply: {', '.join(unasked)} was not proposed")
            if ours.twin_socket and (ours.fd_index is None or ours.fd_index >= len(fds)):
                raise ProtocolError(f"VERSION reply: twin_socket.fd_index {ours.fd_index}, but {len(fds)} fds came")
            self.minor, self.capabilities = answer.minor, ours
            self.most = min(self.most, ours.max_data_xfer_size)
            return fds.pop(ours.fd_index) if ours.twin_socket and ours.fd_index is not None else None
        finally:
            close_fds(fds)

    # -- what the device is

    def device_info(self) -> Call[DeviceInfo]:
        """DEVICE_GET_INFO."""
        payload, _ = yield from _plain(Command.DEVICE_GET_INFO, DEVICE_INFO.pack(DEVICE_INFO.size, 0, 0, 0))
        return DeviceInfo.unpack(memoryview(payload))

    def region_info(self, index: int) -> Call[Region]:
        """DEVICE_GET_REGION_INFO, again with a larger argsz if it takes that."""
        command, argsz = Command.DEVICE_GET_REGION_INFO, REGION_INFO.size
        for _ in range(_TRIES):
            payload, fds = yield Ask(command, (REGION_INFO.pack(argsz, 0, index, 0, 0, 0),))
            try:
                info, need = RegionInfo.unpack(memoryview(payload))
                check_same(info.index, index, command)
                if need <= argsz:
                    self._sizes[index] = info.size
                    return Region(info, fds.pop(0) if fds and info.flags & RegionFlags.MMAP else None)
                argsz = believed(need, command)
            finally:
                close_fds(fds)
        raise ProtocolError(f"{command.name} reply: argsz grows each time, {argsz} at last")

    def io_fds(self, index: int) -> Call[list[SubRegion]]:
        """DEVICE_GET_REGION_IO_FDS, after the size of the region is known."""
        if index not in self._sizes:
            _, fd = yield from self.region_info(index)
            if fd is not None:
                os.close(fd)
        entries = self.dialect.entries
        command, argsz = Command.DEVICE_GET_REGION_IO_FDS, entries.head + _GUESS * ENTRY_48
        for _ in range(_TRIES):
            payload, fds = yield Ask(command, (IO_FDS_INFO.pack(argsz, 0, index, 0),))
            try:
                if len(payload) < IO_FDS_INFO.size:
                    raise ProtocolError(f"{command.name} reply: {len(payload)} bytes, expected {IO_FDS_INFO.size}")
                need, _, found, _ = IO_FDS_INFO.unpack_from(payload)
                check_same(found, index, command)
                if need <= argsz:
                    subs = unpack_sub_regions(memoryview(payload), fds, self._sizes[index], entries)
                    used: set[int] = set().union(*map(descriptors, subs))
                    fds[:] = [fd for fd in fds if fd not in used]
                    return subs
                argsz = believed(need, command)
            finally:
                close_fds(fds)
        raise ProtocolError(f"{command.name} reply: argsz grows each time, {argsz} at last")

    def irq_info(self, index: int) -> Call[IrqInfo]:
        """DEVICE_GET_IRQ_INFO."""
        payload, _ = yield from _plain(Command.DEVICE_GET_IRQ_INFO, IRQ_INFO.pack(IRQ_INFO.size, 0, index, 0))
        info = IrqInfo.unpack(memoryview(payload))
        check_same(info.index, index, Command.DEVICE_GET_IRQ_INFO)
        return info

    # -- its registers

    def access(self, command: Command, region: int, offset: int, count: int) -> bytes:
        """The head of a REGION_READ or REGION_WRITE, which the clients send themselves: it is their data path."""
        self._check_size(count, command)
        return RegionAccess(offset, region, count).pack()

    @property
    def most_writes(self) -> int:
        """How many writes a REGION_WRITE_MULTI can take; 0 if the server has not agreed to ``write_multiple``."""
        if not self.capabilities.write_multiple:
            return 0
        return max(0, (self.most - MULTI.size) // MULTI_ENTRY.size)

    def packed_writes(self, writes: Sequence[RegionWrite]) -> bytes:
        """The payload of a REGION_WRITE_MULTI."""
        if not self.capabilities.write_multiple:
            raise VfioUserError("REGION_WRITE_MULTI: the server has not agreed to write_multiple", errno.ENOTSUP)
        payload = pack_writes(writes)
        self._check_size(len(payload), Command.REGION_WRITE_MULTI)
        return payload

    def write_multi(self, writes: Sequence[RegionWrite]) -> Call[int]:
        """REGION_WRITE_MULTI. Returns how many writes were done."""
        payload, _ = yield from _plain(Command.REGION_WRITE_MULTI, self.packed_writes(writes))
        if len(payload) != MULTI.size:
            raise ProtocolError(f"REGION_WRITE_MULTI reply: {len(payload)} bytes, expected {MULTI.size}")
        done: int = MULTI.unpack(payload)[0]
        return done

    def reset(self) -> Call[None]:
        """DEVICE_RESET."""
        yield from _plain(self.dialect.reset)

    def device_feature(self, flags: FeatureFlags, feature: int, data: bytes, argsz: int) -> Call[DeviceFeature]:
        """DEVICE_FEATURE."""
        self.dialect.check(Command.DEVICE_FEATURE)
        payload, _ = yield from _plain(Command.DEVICE_FEATURE, DeviceFeature(flags, feature, data).pack(argsz))
        return DeviceFeature.unpack(memoryview(payload))

    def dma_buf(self, region: int, ranges: Sequence[MmapArea]) -> Call[int]:
        """DEVICE_FEATURE, DMA_BUF. Returns the descriptor, which the caller owns."""
        self.dialect.check(Command.DEVICE_FEATURE)
        data = DmaBufRequest(region, tuple(ranges)).pack()
        request = DeviceFeature(FeatureFlags.GET, Feature.DMA_BUF, data).pack()
        _, fds = yield Ask(Command.DEVICE_FEATURE, (request,))
        try:
            if not fds:
                raise ProtocolError("DEVICE_FEATURE reply: DMA_BUF without a descriptor")
            return fds.pop(0)
        finally:
            close_fds(fds)

    # -- its interrupts

    def set_irqs(self, request: SetIrqs, fds: Sequence[int] = ()) -> Call[None]:
        """DEVICE_SET_IRQS."""
        yield from _plain(Command.DEVICE_SET_IRQS, request.pack(), fds=fds)

    def trigger_eventfds(self, index: int, start: int, fds: Sequence[int]) -> Call[None]:
        """DEVICE_SET_IRQS, as many as the server's ``max_msg_fds`` needs."""
        flags = SetIrqsFlags.DATA_EVENTFD | SetIrqsFlags.TRIGGER
        most = max(1, min(self.capabilities.max_msg_fds, Capabilities.MOST_FDS))
        for at in range(0, len(fds), most):
            some = fds[at : at + most]
            yield from self.set_irqs(SetIrqs(flags, index, start + at, len(some)), some)

    def release_eventfds(self, index: int, start: int, count: int) -> Call[None]:
        """DEVICE_SET_IRQS that de-assigns eventfds."""
        return self.set_irqs(SetIrqs(SetIrqsFlags.DATA_EVENTFD | SetIrqsFlags.TRIGGER, index, start, count))

    def unmask_eventfd(self, fd: int) -> Call[None]:
        """DEVICE_SET_IRQS with the eventfd that unmasks INTx."""
        flags = SetIrqsFlags.DATA_EVENTFD | SetIrqsFlags.UNMASK
        return self.set_irqs(SetIrqs(flags, IrqIndex.INTX, 0, 1), [fd])

    def act(self, action: SetIrqsFlags, index: int, start: int, count: int) -> Call[None]:
        """DEVICE_SET_IRQS without data."""
        return self.set_irqs(SetIrqs(SetIrqsFlags.DATA_NONE | action, index, start, count))

    # -- its view of memory

    def dma_map(
        self, address: int, size: int, fd: int | None, offset: int, *, read: bool, write: bool, file_io: bool
    ) -> Call[None]:
        """DMA_MAP."""
        flags = (DmaFlags.READ if read else DmaFlags(0)) | (DmaFlags.WRITE if write else DmaFlags(0))
        if file_io:
            flags |= DmaFlags.BY_FILE_IO
        request = DmaMap(flags, offset, address, size).pack()
        yield from _plain(Command.DMA_MAP, request, fds=[] if fd is None else [fd])

    def dma_unmap(self, address: int, size: int) -> Call[None]:
        """DMA_UNMAP of a range."""
        if not size:
            raise VfioUserError("DMA_UNMAP: 0 bytes; dma_unmap_all() is for all maps")
        yield from _plain(Command.DMA_UNMAP, DmaUnmap(address, size).pack())

    def dma_unmap_all(self) -> Call[None]:
        """DMA_UNMAP of all maps."""
        yield from _plain(Command.DMA_UNMAP, DmaUnmap(0, 0).pack())

    def _check_size(self, count: int, command: Command) -> None:
        """Raise VfioUserError (E2BIG) for a message that is too large: the server would close the connection."""
        if count > self.most:
            raise VfioUserError(f"{command.name}: {count} bytes, at most {self.most} fit in a message", errno.E2BIG)


def read_data(reply: bytes, head: int, count: int) -> bytes:
    """The data in the reply to a REGION_READ whose head has ``head`` bytes."""
    if len(reply) != head + count:
        raise ProtocolError(f"REGION_READ reply: {len(reply) - head} bytes, expected {count}")
    return reply[head:]


def _plain(command: Command | DraftCommand, *parts: bytes, fds: Sequence[int] = ()) -> Call[Told]:
    """Ask, and close the descriptors of the reply: it should have none."""
    told = yield Ask(command, parts, fds)
    close_fds(told.fds)
    return told
