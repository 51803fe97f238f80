"""A guest behind the protocol: its driver here, the device at the other end, and memory that it can take back."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator

from bellwire import PciDevice
from bellwire.testing.joined import joined
from devices.serving import MEMORY_AND_MASTER, MSIX, eventfd
from vfio_user import Client, RegionIndex

PAGE = 4096
SIZE = 1 << 20
VECTORS = 4


class Far:
    """A guest as the drivers of tests/nvme and tests/virtio want one. ``interrupt`` is the eventfd of all vectors."""

    def __init__(self, client: Client, fd: int, memory: memoryview, interrupt: int) -> None:
        self.client = client
        self.fd = fd
        self.memory = memory
        self.interrupt = interrupt

    def map(self, address: int = 0, size: int = SIZE) -> None:
        """Map memory, which lies in the file where it lies for the guest."""
        self.client.dma_map(address, size, self.fd, address)

    def unmap(self, address: int = 0, size: int = SIZE) -> None:
        self.client.dma_unmap(address, size)

    def interrupts(self) -> int:
        """How many have come since the last call."""
        try:
            return os.eventfd_read(self.interrupt)
        except BlockingIOError:
            return 0

    def read(self, bar: int, offset: int, size: int) -> int:
        return int.from_bytes(self.client.read(bar, offset, size), "little")

    def write(self, bar: int, value: int, *, offset: int, size: int) -> None:
        self.client.write(bar, offset, value.to_bytes(size, "little"), posted=True)

    def config_read(self, offset: int, size: int) -> int:
        return self.read(RegionIndex.CONFIG, offset, size)

    def config_write(self, offset: int, value: int, size: int) -> None:
        self.client.write(RegionIndex.CONFIG, offset, value.to_bytes(size, "little"))

    def step(self) -> None:
        """Let the device have a turn."""
        self.config_read(0, 2)

    def close(self) -> None:
        """The far side closes."""


@contextlib.contextmanager
def facing(client: Client, size: int = SIZE) -> Iterator[Far]:
    """A guest with ``size`` bytes of memory, none of them mapped; bus mastering and MSI-X are on."""
    with contextlib.ExitStack() as stack:
        fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        os.ftruncate(fd, size)
        mapping = mmap.mmap(fd, size)
        stack.callback(mapping.close)
        memory = stack.enter_context(memoryview(mapping))
        interrupt = stack.enter_context(eventfd())
        guest = Far(client, fd, memory, interrupt)
        guest.config_write(4, MEMORY_AND_MASTER, 2)
        client.trigger_eventfds(MSIX, 0, [interrupt] * VECTORS)
        at = guest.config_read(0x34, 1)
        while guest.config_read(at, 1) != 0x11:
            at = guest.config_read(at + 1, 1)
        guest.config_write(at + 2, 0x8000, 2)
        yield guest


@contextlib.contextmanager
def far(device: PciDevice, size: int = SIZE) -> Iterator[Far]:
    """A guest of ``device``, in one thread with it."""
    with joined(device) as client, facing(client, size) as guest:
        yield guest
