"""A device for the VMM's tests: the bell's registers and more, straight on `vfio_user.Session`, with no SDK between."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence

from vfio_user import (
    Command,
    DeviceFlags,
    Disconnected,
    IoEventFd,
    IoRegionFd,
    IoRegionServer,
    IrqFlags,
    IrqIndex,
    IrqInfo,
    MmapArea,
    Reader,
    Region,
    RegionFlags,
    RegionIndex,
    RegionInfo,
    Session,
    SubRegion,
    VfioUserError,
    Writer,
)

VENDOR, DEVICE = 0x1234, 0xBE11
VECTORS = 8
MATCH = 0x42
MSI_AT, MSIX_AT, EXPRESS_AT = 0x40, 0x60, 0x80

# BAR0, all counters 64 bits wide
IDENT, IRQ_ON_RING, IRQ_NOW, RESET_COUNTERS, PLAIN, LEVEL = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x20
WILDCARD_COUNT, DATAMATCH_COUNT, VALUE_COUNT, PIO_COUNT = 0x40, 0x48, 0x50, 0x58
ACKED_COUNT, PLAIN_COUNT, PIO_PLAIN_COUNT, READ_COUNT = 0x60, 0x68, 0x70, 0x78
VALUE_ERRORS, ACKED_ERRORS, PLAIN_ERRORS, PIO_PLAIN_ERRORS = 0x80, 0x88, 0x90, 0x98
# BAR1
WILDCARD, DATAMATCH, VALUE, SCRATCH = 0x000, 0x010, 0x020, 0x100
# BAR2
PIO, PIO_PLAIN = 0x0, 0x4

SIZES = {0: 4096, 1: 4096, 2: 16, 3: 8192, 4: 8192, RegionIndex.CONFIG: 4096}
AREA = MmapArea(4096, 4096)
TABLE, PENDING = 0, 4096  # in BAR4, which is 64 bits wide


def _config(*, pin: int) -> bytearray:
    config = bytearray(4096)
    struct.pack_into("<HHHHBBBB", config, 0, VENDOR, DEVICE, 0, 0x10, 0, 0, 0x80, 0x08)
    struct.pack_into("<6I", config, 0x10, 0, 0, 1, 8, 0xC, 0)
    config[0x34], config[0x3D] = MSI_AT, pin
    struct.pack_into("<BBHQH", config, MSI_AT, 0x05, MSIX_AT, 0x80, 0, 0)
    struct.pack_into("<BBHII", config, MSIX_AT, 0x11, EXPRESS_AT, VECTORS - 1, 4 | TABLE, 4 | PENDING)
    struct.pack_into("<BBH", config, EXPRESS_AT, 0x10, 0, 2)
    return config


class Toy:
    """A `vfio_user.Backend`. ``kinds`` are the sub-regions it offers, by name; ``mapped`` gives BAR3 an mmap area."""

    device_flags = DeviceFlags.RESET | DeviceFlags.PCI

    def __init__(self, *kinds: str, mapped: bool = False, pin: int = 1) -> None:
        self.kinds = kinds
        self.config = _config(pin=pin)
        self._fresh = bytes(self.config)
        self.counts: dict[int, int] = {}
        self.irq_on_ring = 0
        self.resets = 0
        self.messages: list[tuple[int, int, bytes]] = []
        self.scratch = bytearray(256)
        self.session: Session | None = None
        self.area = os.memfd_create("toy-area") if mapped else -1
        if mapped:
            os.ftruncate(self.area, AREA.offset + AREA.size)
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._bells: dict[int, tuple[int, int]] = {}  # fd -> (BAR, offset)
        self._regions: dict[int, list[SubRegion]] = {}
        self.wire: IoRegionServer | None = None
        self._theirs: socket.socket | None = None
        if {"value", "acked"} & set(kinds):
            ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            self.wire = IoRegionServer(ours)
            self.watch(ours.fileno(), self.take_commands)
        self._stop = os.eventfd(0, os.EFD_NONBLOCK)
        self.watch(self._stop, lambda: None)

    # Backend

    def region(self, index: int) -> Region:
        flags = RegionFlags.READ | RegionFlags.WRITE
        if index == 3 and self.area >= 0:
            return Region(RegionInfo(index, flags | RegionFlags.MMAP, SIZES[index], 0, (AREA,)), self.area)
        size = SIZES.get(index, 0)
        return Region(RegionInfo(index, flags if size else RegionFlags(0), size, 0), None)

    def irq(self, index: int) -> IrqInfo:
        count = {IrqIndex.INTX: int(self.config[0x3D] > 0), IrqIndex.MSI: 1, IrqIndex.MSIX: VECTORS}
        return IrqInfo(index, count.get(IrqIndex(index), 0), IrqFlags.EVENTFD)

    def reader(self, index: int, offset: int, count: int) -> Reader:
        return Reader(functools.partial(self.region_read, index, offset, count))

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        if index == RegionIndex.CONFIG:
            return bytes(self.config[offset : offset + count])
        if index == 1 and SCRATCH <= offset < SCRATCH + 256:
            return bytes(self.scratch[offset - SCRATCH : offset - SCRATCH + count])
        if index == 3 and self.area >= 0:
            return os.pread(self.area, count, offset)
        if index != 0:
            return bytes(count)
        fixed = {IDENT: 0xBE11_0001, IRQ_ON_RING: self.irq_on_ring}
        value = fixed.get(offset, self.counts.get(offset & ~7, 0) >> 8 * (offset & 4))
        return (value & (1 << 8 * count) - 1).to_bytes(count, "little")

    def writer(self, index: int, offset: int, count: int) -> Writer:
        return functools.partial(self.region_write, index, offset)

    def region_write(self, index: int, offset: int, data: memoryview) -> None:
        self.messages.append((index, offset, bytes(data)))
        value = int.from_bytes(data, "little")
        match index, offset:
            case RegionIndex.CONFIG, _:
                self._write_config(offset, bytes(data))
            case 0, 0x04:
                self.irq_on_ring = value
            case 0, 0x08:
                self.trigger(value)
            case 0, 0x0C:
                self.counts.clear()
            case 0, 0x10:
                self.arrived(PLAIN_COUNT, value, PLAIN_ERRORS)
            case 0, 0x20:
                assert self.session is not None
                self.session.irqs.set_level(bool(value))
            case 1, 0x000:
                self.arrived(WILDCARD_COUNT)
            case 1, 0x010:
                self.arrived(DATAMATCH_COUNT)
            case 1, 0x020:
                self.arrived(VALUE_COUNT, value, VALUE_ERRORS)
            case 2, 0x0:
                self.arrived(PIO_COUNT)
            case 2, 0x4:
                self.arrived(PIO_PLAIN_COUNT, value, PIO_PLAIN_ERRORS)
            case 1, 0x100:
                self.arrived(ACKED_COUNT, value, ACKED_ERRORS)
                self.scratch[: len(data)] = data
            case 3, _ if self.area >= 0:
                os.pwrite(self.area, data, offset)

    def accessed(self, index: int, offset: int, count: int, *, write: bool, times: int) -> None: ...

    def sub_regions(self, index: int, mechanisms: frozenset[str]) -> Sequence[SubRegion]:
        if index not in self._regions:
            self._regions[index] = list(self._make_regions(index))
        return self._regions[index]

    def reset(self) -> None:
        self.resets += 1
        self.config[:] = self._fresh
        self.counts.clear()
        self.irq_on_ring = 0

    def before_reply(self) -> None:
        for fd in self._bells:
            self.take_rings(fd)
        self.take_commands()

    def settle(self) -> None: ...

    def before_unmap(self, request: object) -> None: ...

    def dma_changed(self, change: object) -> None: ...

    def irqs_changed(self, index: int) -> None: ...

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._watched[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None):
            self._epoll.unregister(fd)

    def refused(self, error: VfioUserError) -> None: ...

    def hook_failed(self, command: Command, error: BaseException) -> None:
        raise AssertionError(f"{command!r} failed") from error

    # The device

    def preset(self, offset: int, data: bytes) -> None:
        """Give config space other contents, which a reset brings back."""
        self.config[offset : offset + len(data)] = data
        self._fresh = bytes(self.config)

    def arrived(self, counter: int, value: int | None = None, errors: int = 0, times: int = 1) -> None:
        count = self.counts[counter] = self.counts.get(counter, 0) + times
        if value is not None and value != count:
            self.counts[errors] = self.counts.get(errors, 0) + 1
        if self.irq_on_ring:
            self.trigger(self.irq_on_ring - 1)

    def trigger(self, vector: int) -> None:
        assert self.session is not None
        index = IrqIndex.MSIX if self.config[MSIX_AT + 3] & 0x80 else IrqIndex.MSI
        self.session.irqs.trigger(index, vector)

    def take_rings(self, fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            times = os.eventfd_read(fd)
            bar, offset = self._bells[fd]
            counter = {(1, WILDCARD): WILDCARD_COUNT, (1, DATAMATCH): DATAMATCH_COUNT, (2, PIO): PIO_COUNT}
            self.arrived(counter[bar, offset], times=times)

    def take_commands(self) -> None:
        while self.wire is not None and (command := self.wire.receive()) is not None:
            start = VALUE if command.user_data == 1 else SCRATCH
            if command.write:
                self.region_write_by_fd(start + command.offset, command.data.to_bytes(8, "little")[: command.size])
                if command.respond:
                    self.wire.respond(0)
            else:
                self.counts[READ_COUNT] = self.counts.get(READ_COUNT, 0) + 1
                found = self.scratch[command.offset : command.offset + command.size]
                self.wire.respond(int.from_bytes(found, "little"))

    def region_write_by_fd(self, offset: int, data: bytes) -> None:
        value = int.from_bytes(data, "little")
        if offset == VALUE:
            self.arrived(VALUE_COUNT, value, VALUE_ERRORS)
        else:
            self.scratch[offset - SCRATCH : offset - SCRATCH + len(data)] = data
            if offset == SCRATCH:
                self.arrived(ACKED_COUNT, value, ACKED_ERRORS)

    def hang_up(self) -> None:
        """Close the ioregionfd socket, as a device in trouble would."""
        if self.wire is not None and self._theirs is not None:
            self.unwatch(self.wire.fileno())
            self.wire.close()
            self._theirs.close()
            self.wire = self._theirs = None

    def _make_regions(self, index: int) -> Iterator[SubRegion]:
        offered: dict[str, tuple[int, Callable[[int], IoEventFd]]] = {
            "wildcard": (1, lambda fd: IoEventFd(WILDCARD, 0, fd, None)),
            "datamatch": (1, lambda fd: IoEventFd(DATAMATCH, 4, fd, MATCH)),
            "pio": (2, lambda fd: IoEventFd(PIO, 0, fd, None, pio=True)),
        }
        for kind in self.kinds:
            if kind in offered and offered[kind][0] == index:
                fd = os.eventfd(0, os.EFD_NONBLOCK)
                region = offered[kind][1](fd)
                self._bells[fd] = index, region.offset
                self.watch(fd, functools.partial(self.take_rings, fd))
                yield region
        if index == 1 and self._theirs is not None:
            fd = self._theirs.fileno()
            if "value" in self.kinds:
                yield IoRegionFd(VALUE, 4, fd, 1, posted_writes=True)
            if "acked" in self.kinds:
                yield IoRegionFd(SCRATCH, 256, fd, 2)

    def _write_config(self, offset: int, data: bytes) -> None:
        writable = {0x04: 0x07, 0x05: 0x04, MSI_AT + 2: 0x71, MSIX_AT + 3: 0xC0}
        writable |= dict.fromkeys(range(MSI_AT + 4, MSI_AT + 14), 0xFF)
        for at, byte in enumerate(data, offset):
            mask = writable.get(at, 0)
            self.config[at] = self.config[at] & ~mask | byte & mask
        if offset <= EXPRESS_AT + 9 < offset + len(data) and data[EXPRESS_AT + 9 - offset] & 0x80:
            self.reset()

    # The loop

    def serve(self, sock: socket.socket) -> None:
        """Serve one client until it leaves, or `stop`."""
        self.session = Session(sock, self)
        self.watch(self.session.fileno(), lambda: None)
        try:
            more = False
            while True:
                ready = [fd for fd, _ in self._epoll.poll(0 if more else None)]
                if self._stop in ready:
                    return
                more = self.session.service()
                for fd in ready:
                    self._watched.get(fd, lambda: None)()
        except Disconnected:
            pass
        finally:
            self.unwatch(self.session.fileno())
            self.session.close()

    def stop(self) -> None:
        """End `serve` from another thread."""
        os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Release everything; `serve` must have returned."""
        self.hang_up()
        for fd in (*self._bells, self._stop):
            os.close(fd)
        self._epoll.close()
        if self.area >= 0:
            os.close(self.area)


@contextlib.contextmanager
def served(toy: Toy) -> Iterator[socket.socket]:
    """A socket to ``toy``, which a thread serves meanwhile."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=toy.serve, args=(theirs,), name="toy")
    thread.start()
    try:
        yield ours
    finally:
        toy.stop()
        thread.join()
        ours.close()
        toy.close()
