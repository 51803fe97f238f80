"""The base of both disk drivers: a device process, its client, and memory that they share."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from bench.processes import PYTHON, serving
from vfio_user import Client, IoEventFd, IoRegionClient, IoRegionFd, IrqIndex, RegionIndex, ShadowBell, ShadowIoEventFd
from vfio_user.io_fds import descriptors

MEMORY = 32 << 20
DATA = 16 << 20
"""The address of the buffers in guest memory; queues lie below."""
PATIENCE = 60.0
BUFFERS = 32
"""The number of buffers: as many as the bare loop has, and as requests can be under way."""
LOOKS = 2000
"""How often a driver polls for an answer before it waits for the interrupt."""
_COMMAND, _MEMORY_AND_MASTER, _MSIX = 0x04, 0x06, 0x11
_CPU_CLOCK_OF_PROCESS = 2  # clock_getcpuclockid(3)


class Disk(Protocol):
    """A driver that moves blocks."""

    def run(self, offsets: Sequence[int], depth: int) -> None:
        """Move ``length`` bytes at each offset, ``depth`` requests under way; TimeoutError if they stop.

        When half of them have come back, as many new ones go out: one doorbell stands for several requests.
        """


class Plugged:
    """A device as its driver sees it, without a VM: registers, doorbells, memory."""

    def __init__(self, client: Client, memory: memoryview) -> None:
        self.client = client
        self.memory = memory
        self._free = 4096
        self._regions: list[tuple[range, IoRegionFd, IoRegionClient]] = []
        self._interrupt = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._events: dict[int, int] = {}
        self._shadows: dict[int, ShadowBell] = {}
        self._shadow_fds: set[int] = set()
        for sub in client.io_fds(RegionIndex.BAR0):
            if isinstance(sub, IoEventFd):
                self._events[sub.offset] = sub.fd
            elif isinstance(sub, ShadowIoEventFd):
                self._shadows[sub.offset] = ShadowBell(sub)
                self._shadow_fds |= descriptors(sub)
            else:
                self._regions.append((range(sub.offset, sub.offset + sub.size), sub, IoRegionClient(sub.fd)))
                os.close(sub.fd)
        client.write(RegionIndex.CONFIG, _COMMAND, _MEMORY_AND_MASTER.to_bytes(2, "little"))
        self._waiter = select.poll()
        self._waiter.register(self._interrupt, select.POLLIN)
        for at in capability(client, _MSIX):
            client.trigger_eventfds(IrqIndex.MSIX, 0, [self._interrupt, self._interrupt])
            client.write(RegionIndex.CONFIG, at + 2, b"\0\x80")

    def allocate(self, size: int) -> int:
        """Zeroed pages below the buffers."""
        address, self._free = self._free, self._free + -(-size // 4096) * 4096
        assert self._free <= DATA
        return address

    def read(self, offset: int, size: int) -> int:
        """Read a register of BAR0."""
        return int.from_bytes(self.client.read(RegionIndex.BAR0, offset, size), "little")

    def write(self, offset: int, value: int, size: int) -> None:
        """Write a register of BAR0."""
        self.client.write(RegionIndex.BAR0, offset, value.to_bytes(size, "little"), posted=True)

    def bell(self, offset: int, size: int) -> Callable[[int], None]:
        """A function that rings the doorbell at ``offset`` with a value, through the doorbell's fd."""
        event = self._events.get(offset)
        if event is not None:
            return lambda _: os.eventfd_write(event, 1)
        shadow = self._shadows.get(offset)
        if shadow is not None:
            return lambda value: shadow.ring(value.to_bytes(size, "little"))
        for extent, sub, wire in self._regions:
            if offset in extent:
                at = offset - extent.start
                return lambda value: wire.post(sub.user_data, at, value.to_bytes(size, "little"))
        return lambda value: self.write(offset, value, size)

    def step(self) -> None:
        """Wait for the device's interrupt; TimeoutError if none comes."""
        if not self._waiter.poll(PATIENCE * 1000):
            raise TimeoutError("the device has stopped answering")
        os.eventfd_read(self._interrupt)

    def close(self) -> None:
        """Close the descriptors that the device has handed over."""
        for shadow in self._shadows.values():
            shadow.close()
        for fd in (self._interrupt, *self._events.values(), *self._shadow_fds):
            os.close(fd)
        for _, _, wire in self._regions:
            wire.close()


@contextlib.contextmanager
def plugged(device: str, cpu: int, *options: str) -> Iterator[tuple[Plugged, Callable[[], float]]]:
    """The device ``device`` in a process on ``cpu``, and a clock of the CPU time that process has used, in seconds."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, MEMORY)
        view = memoryview(mmap.mmap(fd, MEMORY))  # unmapped when the last view of it has gone
        with serving(PYTHON, cpu, device, options) as process, Client(process.sock, timeout=PATIENCE) as client:
            client.dma_map(0, MEMORY, fd)
            found = Plugged(client, view)
            clock = ~process.pid << 3 | _CPU_CLOCK_OF_PROCESS
            try:
                yield found, lambda: time.clock_gettime(clock)
            finally:
                found.close()
    finally:
        os.close(fd)


def capability(client: Client, kind: int) -> Iterator[int]:
    """The offsets in config space of the capabilities with this ID."""
    config = client.read(RegionIndex.CONFIG, 0, 256)
    at = config[0x34]
    while at:
        if config[at] == kind:
            yield at
        at = config[at + 1]
