"""nvme behind a real socket and worker, with guest memory shared by fd, or not at all."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
from collections.abc import Iterator
from typing import Any

from bellwire.bundled.nvme import Nvme
from devices.serving import MSIX, eventfd, served
from nvme.driver import MEMORY, Driver
from vfio_user import Client


class ServedMachine:
    """A worker and a client; waits for the device's interrupts."""

    def __init__(self, client: Client, memory: memoryview, interrupt: int) -> None:
        self.client = client
        self.memory = memory
        self.bells: dict[int, int] = {}
        self._interrupt = interrupt
        self._waiter = select.poll()
        self._waiter.register(interrupt, select.POLLIN)
        self._waiter.register(client.fileno(), select.POLLIN)

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.client.read(0, offset, size), "little")

    def write(self, offset: int, value: int, size: int) -> None:
        if offset in self.bells:
            os.eventfd_write(self.bells[offset], 1)
        else:
            self.client.write(0, offset, value.to_bytes(size, "little"), posted=True)

    def step(self) -> None:
        for fd, _ in self._waiter.poll(20):
            if fd == self._interrupt:
                os.eventfd_read(fd)
            else:
                self.client.poll(0)


class Unshared:
    """Guest memory by message."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def read(self, address: int, count: int) -> bytes:
        return bytes(self._memory[address : address + count])

    def write(self, address: int, data: bytes) -> None:
        self._memory[address : address + len(data)] = data


@contextlib.contextmanager
def driving(*, shared: bool = True, **options: Any) -> Iterator[Driver]:
    """A driver of an enabled controller that a worker serves; all vectors are one eventfd."""
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, MEMORY)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        mapping = mmap.mmap(fd, MEMORY)
        stack.callback(mapping.close)
        view = stack.enter_context(memoryview(mapping))
        interrupt = stack.enter_context(eventfd())
        client = stack.enter_context(served(Nvme(**options), memory=Unshared(view)))
        client.dma_map(0, MEMORY, fd if shared else None)
        client.trigger_eventfds(MSIX, 0, [interrupt] * 4)
        at = _capability(client, 0x11)
        client.write(7, at + 2, (0x8000).to_bytes(2, "little"))
        driver = Driver(ServedMachine(client, view, interrupt))
        driver.enable()
        yield driver


def _capability(client: Client, number: int) -> int:
    at = client.read(7, 0x34, 1)[0]
    while at:
        found, following = client.read(7, at, 2)
        if found == number:
            return int(at)
        at = following
    raise AssertionError(f"no capability {number:#x}")
