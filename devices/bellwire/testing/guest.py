"""The guest's side of a device, in the test's own process."""

from __future__ import annotations

import itertools
import os
import select
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from bellwire.declare.bar import Area
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.register import Register
from bellwire.declare.vendor import VendorCapability
from bellwire.device import PciDevice
from bellwire.model import capabilities as pci
from bellwire.model.jobs import Done, Job
from bellwire.serve.loop import Deadline
from vfio_user import DmaFlags, DmaMap, DmaTable, IrqIndex, RegionIndex, Segment, SharedMap

Device = TypeVar("Device", bound=PciDevice)
Place = Register[Any] | Doorbell | IoRegion | Area
MEMORY = 1 << 20


class Guest(Generic[Device]):
    """A guest that has found ``device``, given it ``memory`` bytes at address 0 and turned bus mastering on.

    Everything happens in the call: a write has run its hook when it returns, and a GuestError comes out of it.
    Time stands still between calls of :meth:`advance`; background work runs at once, in the call that asks
    for it, and its result arrives with the next :meth:`advance`; so do the jobs of a pool.
    """

    def __init__(self, device: Device | type[Device], *, memory: int = MEMORY, **options: Any) -> None:
        self.device: Device = device(**options) if isinstance(device, type) else device
        self.interrupts: Counter[tuple[IrqIndex, int]] = Counter()
        """How often each MSI or MSI-X vector was delivered."""
        self.line = False
        """The INTx level that the guest sees."""
        self.now = 0.0
        self._timers: list[Deadline] = []
        self._order = itertools.count()
        self._dma = DmaTable()
        self._memory_fd = os.memfd_create("bellwire-test-guest", os.MFD_CLOEXEC)
        os.ftruncate(self._memory_fd, memory)
        flags = DmaFlags.READ | DmaFlags.WRITE
        self._dma.map(DmaMap(flags=flags, offset=0, address=0, size=memory), os.dup(self._memory_fd))
        shared = self._dma.shared_map(0, True)
        assert shared is not None  # mapped a line ago
        self.memory: memoryview = shared.view
        """What the device reaches by DMA, from address 0 on."""
        self._watched: dict[int, Callable[[], None]] = {}
        core = self.device.core
        core.host = self
        core.join(True)
        with ExitStack() as stack:
            stack.callback(self._let_go)
            self.device.setup()
            stack.callback(self.device.close)
            core.reset()
            self.enable()
            self._stack = stack.pop_all()

    # -- what a driver does

    def enable(self) -> None:
        """Turn memory, I/O and bus mastering on, and MSI-X or MSI (all its messages) if the device has it."""
        config = self.device.core.config
        space = config.at
        self.config_write(pci.COMMAND, pci.IO_ENABLE | pci.MEMORY_ENABLE | pci.BUS_MASTER, 2)
        for capability, enable in ((pci.MSIX, 0x8000), (pci.MSI, 0x0001)):
            at = space.get(capability)
            if at is not None:
                control = self.config_read(at + 2, 2)
                messages = (control >> 1 & 7) << 4 if capability == pci.MSI else 0
                self.config_write(at + 2, control | messages | enable, 2)
                return

    @overload
    def read(self, place: Place, /, *, offset: int = 0, size: int | None = None) -> int: ...
    @overload
    def read(self, place: int, offset: int, size: int, /) -> int: ...
    def read(self, place: Place | int, offset: int = 0, size: int | None = None) -> int:
        """Read a register by name, or ``size`` bytes at ``offset`` of a region by index."""
        index, start, count = self._where(place, offset, size)
        self._check(index, start, count)
        return int.from_bytes(self.device.core.read(index, start, count), "little")

    def write(self, place: Place | int, value: int, *, offset: int = 0, size: int | None = None) -> None:
        """Write a register by name, or ``size`` bytes at ``offset`` of a region by index."""
        index, start, count = self._where(place, offset, size)
        self._check(index, start, count)
        data = (value & ((1 << 8 * count) - 1)).to_bytes(count, "little")
        self.device.core.write(index, start, memoryview(data))

    def ring(self, bell: Doorbell | IoRegion, value: int | None = None, *, index: int = 0) -> None:
        """Ring a doorbell as KVM would: with ``value`` where it takes one.

        ``bell`` may be a row of doorbells (``ioregion(..., bell=4)``), and ``index`` says which of them. It travels by
        event, and its value is lost, where the device has asked for that (:meth:`PciDevice.ring_by_event`).
        """
        core = self.device.core
        if isinstance(bell, IoRegion):
            size = bell.bell or bell.size
            if not bell.bell or not 0 <= index < bell.size // size:
                raise IndexError(f"{bell} has {bell.size // size if bell.bell else 0} doorbells in a row, no {index}")
            if index < core.by_event.get(bell, 0):
                core.ring_in_row((bell, index * size), 1)
            else:
                core.ioregion_write(bell, index * size, size, (value or 0) & ((1 << 8 * size) - 1))
        elif bell.value:
            core.ring_value(bell, 0 if value is None else value)
        else:
            core.ring(bell, 1)

    def config_read(self, offset: int, size: int) -> int:
        """Read config space."""
        return self.read(RegionIndex.CONFIG, offset, size)

    def config_write(self, offset: int, value: int, size: int) -> None:
        """Write config space."""
        self.write(RegionIndex.CONFIG, value, offset=offset, size=size)

    def capability(self, body: VendorCapability) -> int:
        """Where in config space the contents of a vendor-specific capability begin."""
        return self.device.core.config.vendor[body]

    def reset(self) -> None:
        """Reset the device as DEVICE_RESET does. Bus mastering and interrupts are off then: see :meth:`enable`."""
        self.device.core.reset()

    def snapshot(self) -> bytes:
        """The device's state."""
        return self.device.core.snapshot()

    def restore(self, snapshot: bytes) -> None:
        """Put back what :meth:`snapshot` gave, of this device or of another one of its class."""
        self.device.core.restore(snapshot)

    def advance(self, seconds: float = 0.0) -> None:
        """Let time pass: timers run when they are due, in order, those that they set too."""
        end = self.now + seconds
        while self._timers:
            timer = min(self._timers)
            if timer.when > end:
                break
            self._timers.remove(timer)
            self.now = max(self.now, timer.when)
            if timer.callback is not None:
                timer.callback()
        self.now = end

    def poll(self, timeout: float = 0.0) -> bool:
        """Let the device have what its descriptors say, once; whether there was anything within ``timeout`` seconds."""
        poll = select.poll()
        for fd in self._watched:
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(timeout * 1000)]
        for fd in ready:
            if fd in self._watched:
                self._watched[fd]()
        return bool(ready)

    def close(self) -> None:
        """Take the device down."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _let_go(self) -> None:
        self.device.core.close()
        self._dma.clear()
        os.close(self._memory_fd)

    def _where(self, place: Place | int, offset: int, size: int | None) -> tuple[int, int, int]:
        if isinstance(place, int):
            if size is None:
                raise TypeError("an access by region index needs a size")
            return place, offset, size
        return place.bar.index, place.offset + offset, place.size if size is None else size

    def _check(self, index: int, offset: int, count: int) -> None:
        size = self.device.core.region_size(index)
        if not 0 <= offset <= offset + count <= size:
            raise IndexError(f"{count} bytes at {offset:#x} of region {index}, which has {size:#x}")

    # -- bellwire.model.host.Host

    def segments(self, address: int, size: int, write: bool) -> Iterable[Segment]:
        """The guest's memory."""
        return self._dma.segments(address, size, write)

    by_message = False

    def whole(self, address: int, size: int, write: bool) -> memoryview | None:
        """The guest's memory, however a test has cut it."""
        return self._dma.whole(address, size, write)

    def shared_map(self, address: int, write: bool) -> SharedMap | None:
        """All of the guest's memory."""
        return self._dma.shared_map(address, write)

    def dma_read(self, address: int, size: int) -> bytes:
        """All memory here is shared, so nobody asks."""
        raise AssertionError("segments() gives a view for every byte of the test guest's memory")

    def dma_write(self, address: int, data: memoryview) -> None:
        """As for :meth:`dma_read`."""
        raise AssertionError("segments() gives a view for every byte of the test guest's memory")

    def signal(self, index: IrqIndex, vector: int) -> bool:
        """Count an interrupt, if the guest has turned that kind on, and this message of MSI (PCI 3.0 §6.8.1.3)."""
        config = self.device.core.config
        if index is IrqIndex.MSIX:
            heard = config.msix_enabled
        else:
            heard = config.msi_enabled and vector < 1 << (config.field(config.at[pci.MSI] + 2) >> 4 & 7)
        if heard:
            self.interrupts[index, vector] += 1
        return heard

    def undelivered(self, index: IrqIndex, vector: int) -> bool:
        """Every interrupt is delivered at once."""
        return False

    def level(self, asserted: bool) -> None:
        """Take the line's level."""
        self.line = asserted

    def after(self, delay: float, callback: Callable[[], None]) -> Deadline:
        """A timer in the test's time."""
        timer = Deadline(self.now + max(0.0, delay), next(self._order), callback)
        self._timers.append(timer)
        return timer

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """:meth:`poll` looks at it."""
        self._watched[fd] = callback

    def unwatch_fd(self, fd: int) -> None:
        """No longer."""
        self._watched.pop(fd, None)

    def background(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Do it now, tell of it later."""
        result = work()
        self.after(0, lambda: done(result))

    def pool(self, threads: int, done: Done) -> AtOnce:
        """Jobs run in the call that submits them, and are told of later."""
        return AtOnce(self, done)


class AtOnce:
    """A pool without threads."""

    def __init__(self, guest: Guest[Any], done: Done) -> None:
        self._guest = guest
        self._done = done
        self._finished: list[Job] = []

    def submit(self, job: Job) -> None:
        """Run it; :meth:`Guest.advance` tells of it, and of all others that have run until then."""
        job.run()
        if not self._finished:
            self._guest.after(0, self._tell)
        self._finished.append(job)

    def finish(self) -> None:
        """All have run already."""

    def settle(self) -> None:
        """Forget what has not been told."""
        self._finished.clear()

    def close(self) -> None:
        """Nothing to end."""
        self.settle()

    def _tell(self) -> None:
        finished, self._finished = self._finished, []
        if finished:
            self._done(finished)
