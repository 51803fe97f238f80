"""A test's guest: the guest's side of a device, in the process of the test."""

from __future__ import annotations

import itertools
import os
import select
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from bellwire.declare.bar import Area
from bellwire.declare.capability import ExtendedCapability
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.register import Register
from bellwire.declare.vendor import VendorCapability
from bellwire.device import PciDevice
from bellwire.filters import Filter, Stack
from bellwire.filters.told import tell_at_debug
from bellwire.model import capabilities as pci
from bellwire.model.jobs import Done
from bellwire.serve.loop import Deadline
from bellwire.testing.at_once import AtOnce
from bellwire.testing.wires import Wires
from vfio_user import (
    DmaFlags,
    DmaMap,
    DmaTable,
    IrqIndex,
    KeptFiles,
    Late,
    RegionIndex,
    Segment,
    SharedFile,
    SharedMap,
)

Device = TypeVar("Device", bound=PciDevice)
Place = Register[Any] | Doorbell | IoRegion | Area
MEMORY = 1 << 20


class Guest(Generic[Device]):
    """A guest with ``memory`` bytes at address 0. It has set ``device`` up: bus mastering and interrupts are on.

    ``device`` is an instance, or a class that is made with ``options``. A hook runs within the call that causes it, and
    a GuestError that it raises comes out of that call. ``filters`` stand between the guest and the device, the first on
    the guest's side. Time passes only in :meth:`advance`, and in a read that a filter delays. Background work and the
    jobs of a pool run at once, within the call that starts them; the device gets their results in the next
    :meth:`advance`. The guest closes the device at the end: use it in a ``with`` statement, or call :meth:`close`.
    """

    def __init__(
        self,
        device: Device | type[Device],
        *,
        memory: int = MEMORY,
        filters: Iterable[Filter] = (),
        **options: Any,
    ) -> None:
        self.device: Device = device(**options) if isinstance(device, type) else device
        self.interrupts: Counter[tuple[IrqIndex, int]] = Counter()
        """How often each MSI or MSI-X vector was delivered, and the error interrupt (IrqIndex.ERR)."""
        self.line = False
        """The INTx level that the guest sees."""
        self.now = 0.0
        """The time in seconds since the guest was made."""
        self.kept: dict[str, tuple[int, Mapping[str, Any]]] = {}
        """The files that the device keeps for a successor, and their notes, by name."""
        self.left: dict[str, tuple[int, Mapping[str, Any]]] = {}
        """The files that it finds when it takes over from another process. The device owns those that it takes."""
        self._timers: list[Deadline] = []
        self._order = itertools.count()
        self._dma = DmaTable()
        self._dma.kept = KeptFiles()
        self._memory_fd = os.memfd_create("bellwire-test-guest", os.MFD_CLOEXEC)
        os.ftruncate(self._memory_fd, memory)
        flags = DmaFlags.READ | DmaFlags.WRITE
        self._dma.map(DmaMap(flags=flags, offset=0, address=0, size=memory), os.dup(self._memory_fd))
        shared = self._dma.shared_map(0, True)
        assert shared is not None  # the line before has mapped it
        self.memory: memoryview = shared.view
        """What the device reaches by DMA, from address 0 on."""
        self._watched: dict[int, Callable[[], None]] = {}
        self._wires = Wires(self)
        core = self.device.core
        core.host = self
        core.join(True)
        self.filters = Stack(core)
        """The filters between this guest and the device."""
        tell_at_debug(self.filters)
        with ExitStack() as stack:
            stack.callback(self._let_go)
            stack.callback(self.filters.clear)
            self.device.setup()
            stack.callback(self.device.close)
            core.reset()
            for each in filters:
                self.filters.add(each)
            self.enable()
            self._stack = stack.pop_all()

    # -- what a driver does

    def enable(self) -> None:
        """Turn on memory, I/O and bus mastering, and all vectors of MSI-X or MSI if the device has them."""
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
        """Read a register by its declaration, or ``size`` bytes at ``offset`` of a region by its index.

        An IndexError for an access outside the region: a real client refuses it before the device sees it.
        """
        index, start, count = self._where(place, offset, size)
        self._check(index, start, count)
        reader = self.device.core.reader(index, start, count)
        try:
            return int.from_bytes(reader.read(), "little")
        except Late as late:
            return int.from_bytes(self._await(late), "little")

    def write(self, place: Place | int, value: int, *, offset: int = 0, size: int | None = None) -> None:
        """Write a register by its declaration, or ``size`` bytes at ``offset`` of a region by its index.

        ``value`` is cut to the size. An IndexError for an access outside the region.
        """
        index, start, count = self._where(place, offset, size)
        self._check(index, start, count)
        data = (value & ((1 << 8 * count) - 1)).to_bytes(count, "little")
        self.device.core.writer(index, start, count)(memoryview(data))

    def ring(self, bell: Doorbell | IoRegion, value: int | None = None, *, index: int = 0) -> None:
        """Ring a doorbell as KVM would. ``value`` counts for a doorbell whose hook gets it.

        A doorbell with ``values`` takes only those: a ValueError for another one. :meth:`write` writes any value.

        ``bell`` may be a row of doorbells (``ioregion(..., bell=4)``); ``index`` is then a doorbell's place in it.
        If the device has called :meth:`PciDevice.ring_by_event` for it, the value is lost, as with an ioeventfd.
        """
        core = self.device.core
        if isinstance(bell, IoRegion):
            size = bell.bell or bell.size
            if not bell.bell or not 0 <= index < bell.size // size:
                raise IndexError(f"{bell} has {bell.size // size if bell.bell else 0} doorbells in a row, no {index}")
            if self._wires.ring(bell, index * size):
                return
            if index < core.by_event.get(bell, 0):
                core.ring_in_row((bell, index * size), 1)
            else:
                core.ioregion_write(bell, index * size, size, (value or 0) & ((1 << 8 * size) - 1))
        elif bell.values is not None and value not in bell.values:
            raise ValueError(f"{bell} is rung by the values {bell.values}, not by {value}")
        elif bell.with_value:
            core.ring_value(bell, 0 if value is None else value)
        else:
            core.ring(bell, 1)

    def config_read(self, offset: int, size: int) -> int:
        """Read ``size`` bytes at ``offset`` of config space, as a little-endian integer."""
        return self.read(RegionIndex.CONFIG, offset, size)

    def config_write(self, offset: int, value: int, size: int) -> None:
        """Write ``value`` to ``size`` bytes at ``offset`` of config space."""
        self.write(RegionIndex.CONFIG, value, offset=offset, size=size)

    def capability(self, capability: VendorCapability | ExtendedCapability) -> int:
        """The offset in config space of an extended capability, or of the body of a vendor-specific one."""
        if isinstance(capability, VendorCapability):
            return self.device.core.config.vendor[capability]
        return next(each.at for each in self.device.layout.extended if each.capability is capability)

    def reset(self) -> None:
        """Reset the device as DEVICE_RESET does. This turns bus mastering and interrupts off: call :meth:`enable`."""
        self.device.core.reset()

    def snapshot(self) -> bytes:
        """The device's state as bytes, for :meth:`restore`."""
        return self.device.core.snapshot()

    def restore(self, snapshot: bytes) -> None:
        """Restore a :meth:`snapshot` of this device or of another one of its class. A StateError for any other."""
        self.device.core.restore(snapshot)

    def advance(self, seconds: float = 0.0) -> None:
        """Let ``seconds`` pass. Timers run in the order in which they are due, including those set in the meantime."""
        end = self.now + seconds
        while self._timers and min(self._timers).when <= end:
            self._run_timer()
        self.now = end

    def poll(self, timeout: float = 0.0) -> bool:
        """Wait up to ``timeout`` seconds for the descriptors that the device watches, and run their callbacks once.

        True if any of them was ready.
        """
        poll = select.poll()
        for fd in self._watched:
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(timeout * 1000)]
        for fd in ready:
            if fd in self._watched:
                self._watched[fd]()
        return bool(ready)

    def close(self) -> None:
        """Run the device's ``close``, and free the guest's memory. Raises what a filter fails the test with."""
        with self._stack:
            for _, each in self.filters:
                each.conclude()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._stack.close()

    def _run_timer(self) -> None:
        """Let time pass until the next timer is due, and run it."""
        timer = min(self._timers)
        self._timers.remove(timer)
        self.now = max(self.now, timer.when)
        callback, timer.callback = timer.callback, None
        if callback is not None:
            callback()

    def _await(self, late: Late) -> bytes:
        """Let time pass until a filter lets a read go on. A TimeoutError if no timer is left that could do it."""
        answers: list[bytes] = []
        errors: list[Exception] = []
        late.answer, late.fail = answers.append, errors.append
        while not answers and not errors:
            if not self._timers:
                raise TimeoutError("a filter holds the read for ever")
            self._run_timer()
        if errors:
            raise errors[0]
        return answers[0]

    def _let_go(self) -> None:
        self.device.core.close()
        for fd, _ in (*self.kept.values(), *self.left.values()):
            os.close(fd)
        self._wires.close()
        self._dma.clear()
        os.close(self._memory_fd)

    def _where(self, place: Place | int, offset: int, size: int | None) -> tuple[int, int, int]:
        if isinstance(place, int):
            if size is None:
                raise TypeError("an access by region index needs a size")
            return place, offset, size
        count = place.size if size is None else size
        if isinstance(place.bar, ExtendedCapability):
            return RegionIndex.CONFIG, self.capability(place.bar) + place.offset + offset, count
        return place.bar.index, place.offset + offset, count

    def _check(self, index: int, offset: int, count: int) -> None:
        size = self.device.core.region_size(index)
        if not 0 <= offset <= offset + count <= size:
            raise IndexError(f"{count} bytes at {offset:#x} of region {index}, which has {size:#x}")

    # -- bellwire.model.host.Host

    @property
    def copier(self) -> Self:
        """Itself: no filter looks."""
        return self

    def segments(self, address: int, size: int, write: bool) -> Iterable[Segment]:
        """The pieces of guest memory that hold these bytes."""
        return self._dma.segments(address, size, write)

    by_message = copied = False

    def whole(self, address: int, size: int, write: bool) -> memoryview | None:
        """One view of these bytes, even if a test has mapped the memory in pieces."""
        return self._dma.whole(address, size, write)

    def shared_map(self, address: int, write: bool) -> SharedMap | None:
        """The map that holds ``address``: all of the guest's memory."""
        return self._dma.shared_map(address, write)

    def files(self) -> list[SharedFile]:
        """The guest's memory with its file, if the device has asked for it."""
        return self._dma.files()

    def interrupt_fd(self, index: IrqIndex, vector: int) -> int | None:
        """An eventfd for the vector. Signals in it are counted by the next :meth:`poll`."""
        return self._wires.interrupt(index, vector)

    def lend(self, row: IoRegion, offset: int) -> int | None:
        """The eventfd of a doorbell of a row: :meth:`ring` adds to it from now on."""
        return self._wires.lend(row, offset)

    def take_back(self, row: IoRegion, offset: int) -> None:
        """Let :meth:`ring` run hooks again. Rings that nobody has read run them now."""
        self._wires.take_back(row, offset)

    def dma_read(self, address: int, size: int) -> bytes:
        """Never called: this guest shares all its memory, so the device copies it without messages."""
        raise AssertionError("segments() gives a view for every byte of the test guest's memory")

    def peek(self, address: int, size: int) -> bytes:
        """Copy the guest's memory."""
        return b"".join(bytes(part.view or b"") for part in self.segments(address, size, False))

    def dma_write(self, address: int, data: memoryview) -> None:
        """Never called, as :meth:`dma_read`."""
        raise AssertionError("segments() gives a view for every byte of the test guest's memory")

    def signal(self, index: IrqIndex, vector: int) -> bool:
        """Count an interrupt. False if the guest has not enabled that kind, or that MSI message (PCI 3.0 §6.8.1.3)."""
        config = self.device.core.config
        if index is IrqIndex.ERR:
            heard = True
        elif index is IrqIndex.MSIX:
            heard = config.msix_enabled
        else:
            heard = config.msi_enabled and vector < 1 << (config.field(config.at[pci.MSI] + 2) >> 4 & 7)
        if heard:
            self.interrupts[index, vector] += 1
        return heard

    def keep_file(self, name: str, fd: int, note: Mapping[str, Any], *, lasting: bool = False) -> None:
        """Note it in :attr:`kept`, with a duplicate of the descriptor."""
        self.drop_file(name)
        self.kept[name] = os.dup(fd), note

    def drop_file(self, name: str) -> None:
        """Forget it."""
        if name in self.kept:
            os.close(self.kept.pop(name)[0])

    def kept_file(self, name: str) -> tuple[int, Mapping[str, Any]] | None:
        """The file that the test has put into :attr:`left`, as another process has left it."""
        return self.left.pop(name, None)

    def undelivered(self, index: IrqIndex, vector: int) -> bool:
        """False: this guest takes every interrupt at once."""
        return False

    def level(self, asserted: bool) -> None:
        """Store the level of the INTx line in :attr:`line`."""
        self.line = asserted

    def regions_changed(self) -> None:
        """Do nothing: this guest asks for the size at each access."""

    def after(self, delay: float, callback: Callable[[], None]) -> Deadline:
        """Set a timer, which :meth:`advance` runs."""
        timer = Deadline(self.now + max(0.0, delay), next(self._order), callback)
        self._timers.append(timer)
        return timer

    def watch_fd(self, fd: int, callback: Callable[[], None]) -> None:
        """Let :meth:`poll` run ``callback`` when ``fd`` can be read."""
        self._watched[fd] = callback

    def unwatch_fd(self, fd: int) -> None:
        """End the watch of ``fd``, if there is one."""
        self._watched.pop(fd, None)

    def background(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run ``work`` now. The next :meth:`advance` runs ``done`` with its result."""
        result = work()
        self.after(0, lambda: done(result))

    def pool(self, threads: int, done: Done) -> AtOnce:
        """A pool whose jobs run at once. The next :meth:`advance` runs ``done`` with them."""
        return AtOnce(self, done)
