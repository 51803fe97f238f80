"""The device's backend: what the session of a client calls."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from functools import partial

from bellwire.model.capabilities import BUS_MASTER, COMMAND
from bellwire.model.core import Core
from bellwire.model.labels import Labels
from bellwire.model.limited import shape
from bellwire.serve.boundary import Boundary
from bellwire.serve.doorbell_fds import DoorbellFds
from bellwire.serve.host import ClientHost
from bellwire.serve.observer import Observer
from bellwire.serve.standstill import Standstill
from vfio_user import (
    Command,
    DeviceFlags,
    DmaMap,
    DmaUnmap,
    IrqFlags,
    IrqIndex,
    IrqInfo,
    Mechanism,
    MmapArea,
    Reader,
    Region,
    RegionFlags,
    RegionIndex,
    RegionInfo,
    SubRegion,
    VfioUserError,
    Writer,
)

FOLLOWING = 0.1
"""Seconds for jobs that a device begins as others end, while a client waits for it to take memory back."""


class DeviceBackend:
    """A :class:`vfio_user.Backend`: what the client asks goes to the device's core."""

    device_flags = DeviceFlags.RESET | DeviceFlags.PCI

    def __init__(
        self,
        core: Core,
        host: ClientHost,
        doorbell_fds: DoorbellFds,
        loop: Standstill,
        boundary: Boundary,
        observer: Observer,
    ) -> None:
        self._core = core
        self._host = host
        self._doorbell_fds = doorbell_fds
        self._loop = loop
        self._boundary = boundary
        self._observer = observer
        self._labels = Labels(core.layout)

    def region(self, index: int) -> Region:
        """The size and access rights of a region, and its areas that the client may map."""
        size = self._core.region_size(index)
        if size == 0:
            return Region(RegionInfo(index, RegionFlags(0), 0), None)
        if index == RegionIndex.ROM:
            return Region(RegionInfo(index, RegionFlags.READ, size), None)
        flags = RegionFlags.READ | RegionFlags.WRITE
        plan = self._core.layout.bars.get(index)
        inside = [area for area in plan.areas if area.offset + area.size <= size] if plan else []
        areas = tuple(MmapArea(area.offset, area.size) for area in inside)
        if areas:
            flags |= RegionFlags.MMAP
        return Region(RegionInfo(index, flags, size, 0, areas), self._core.state.area_fds.get(index))

    def irq(self, index: int) -> IrqInfo:
        """The number of interrupts of a kind. The session can mask all kinds, by DATA_NONE and DATA_BOOL."""
        layout = self._core.layout
        count, flags = 0, IrqFlags.EVENTFD | IrqFlags.MASKABLE
        if index == IrqIndex.INTX and layout.intx:
            count, flags = 1, flags | IrqFlags.AUTOMASKED
        elif index == IrqIndex.MSI and layout.msi:
            count = layout.msi.count
        elif index == IrqIndex.MSIX and layout.msix:
            count = layout.msix.count
        elif index in (IrqIndex.ERR, IrqIndex.REQ):
            count = 1
        return IrqInfo(index, count, flags)

    def reader(self, index: int, offset: int, count: int) -> Reader:
        """A callable for guest reads of ``count`` bytes at this place."""
        return self._core.reader(index, offset, count)

    def writer(self, index: int, offset: int, count: int) -> Writer:
        """A callable for guest writes of ``count`` bytes at this place."""
        writer = self._core.writer(index, offset, count)
        if index == RegionIndex.CONFIG and offset <= COMMAND < offset + count:
            return partial(self._write_command, writer, COMMAND - offset)
        return writer

    def _write_command(self, writer: Writer, at: int, data: memoryview) -> None:
        """Write the command register, whose first byte is ``data[at]``. No DMA comes after bus mastering is off."""
        if self._core.config.bus_master and not data[at] & BUS_MASTER:
            self.end_jobs()
        writer(data)

    def accessed(self, index: int, offset: int, count: int, *, write: bool, times: int) -> None:
        """Count ``times`` accesses to this place in the tally."""
        tally = self._core.tally
        if write:
            tally.writes += times
        else:
            tally.reads += times
        for name in self._labels.at(index, offset, count):
            tally.accesses[write][name] += times

    def sub_regions(self, index: int, mechanisms: frozenset[Mechanism]) -> Sequence[SubRegion]:
        """The doorbells and ioregions that the client may register with KVM, with their fds."""
        return self._doorbell_fds.sub_regions(index, mechanisms)

    def still_reader(self, index: int, offset: int, count: int) -> Reader:
        """As :meth:`reader`, while the device stands still: config space can be read, and no hook runs."""
        if index == RegionIndex.CONFIG:
            return Reader(lambda: bytes(self._core.state.config[offset : offset + count]))
        raise self._still("REGION_READ", index, offset, count)

    def still_writer(self, index: int, offset: int, count: int) -> Writer:
        """As :meth:`writer`, while the device stands still."""
        raise self._still("REGION_WRITE", index, offset, count)

    def _still(self, verb: str, index: int, offset: int, count: int) -> VfioUserError:
        why = f"{self._core.device.name} stands still for a migration"
        return VfioUserError(f"{verb} of {count} bytes at {offset:#x} of region {index}: {why}", errno.EBUSY)

    def reset(self) -> None:
        """Handle DEVICE_RESET. Rings from before the reset are dropped."""
        self._doorbell_fds.discard()
        self._core.reset()

    def before_reply(self) -> None:
        """Run the rings that came before the reply: a reply flushes rings (see :mod:`bellwire.serve.served`)."""
        if self._doorbell_fds.gather_all():
            self._doorbell_fds.run()

    def settle(self) -> None:
        """Wait for the jobs of pools."""
        self._core.finish_jobs()

    def end_jobs(self) -> None:
        """Wait for the jobs of pools, and let the device have them while it still reaches the memory of its guest.

        Its timers that are due run, too: it may have put off a part of its work to the next turn. A device may begin
        other jobs then, and gets those as well; after :data:`FOLLOWING` seconds no more of them. It gets them later,
        from the loop, if device code cannot run now (:attr:`ClientHost.may_call`).
        """
        core, end = self._core, 0.0
        while (ended := core.finish_jobs()) or self._loop.late:
            now = time.monotonic()
            end = end or now + FOLLOWING
            if core.still or now > end or not self._host.may_call:
                return
            if not (self._loop.run_ready() if ended else self._loop.run_due()):
                return

    def before_unmap(self, request: DmaUnmap) -> None:
        """Let jobs that use the memory come to their end: a view of memory that is unmapped shows zeros.

        A disk must not get these, and the guest must not miss what the device says of a request that has ended. Others
        to whom the device has handed memory on let go of it, too.
        """
        self.end_jobs()
        self._core.news.going(request)

    def dma_changed(self, change: DmaMap | DmaUnmap) -> None:
        """The client has mapped or unmapped memory."""
        self._core.remapped(change)
        if isinstance(change, DmaMap):
            self._core.news.memory()
        if self._host.session is not None:
            table = self._host.session.dma
            self._observer.mapped(len(table), table.total)

    def irqs_changed(self, index: int) -> None:
        """The client has set, masked or unmasked interrupts of kind ``index``."""
        if index == IrqIndex.MSIX:
            self._core.signals.taken()
        self._core.news.wires()

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Watch a descriptor of the session (the INTx resample eventfd) on the loop."""
        self._loop.watch(fd, callback)

    def unwatch(self, fd: int) -> None:
        """End the watch of a descriptor of the session."""
        self._loop.unwatch(fd)

    def refused(self, error: VfioUserError) -> None:
        """Log a message of the client that the session has refused."""
        self._core.log.warning(("refused", shape(error)), "refused: %s", error)

    def hook_failed(self, command: Command, error: BaseException) -> None:
        """Log an error that device code raised for a message. The session has answered the client with an errno."""
        self._boundary.failed(command.name, error)
