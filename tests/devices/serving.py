"""A worker on a thread, a client in front of it, and a device that tests can get hold of."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from bellwire import Bar, IntX, MsiX, PciDevice
from bellwire.serve.worker import Worker
from vfio_user import PROPOSAL, Capabilities, Client, IrqIndex, Memory, RegionIndex, SubRegion
from vfio_user.io_fds import descriptors

COMMAND, MEMORY_AND_MASTER = 0x04, 0x06
PATIENCE = 30.0


class Probe(PciDevice, vendor=0x1234, device=0xCAFE, class_code=0x088000):
    """Records what reaches it; some of its registers misbehave."""

    irq = MsiX(4)
    line = IntX()
    mmio = Bar(0, size=4096)
    scratch = mmio.reg(0x00)
    fails = mmio.reg(0x04)
    blocks = mmio.reg(0x08)
    fetch = mmio.reg(0x10, size=8)
    store = mmio.reg(0x18, size=8)
    fetched = mmio.reg(0x20)
    bell = mmio.doorbell(0x30)
    value_bell = mmio.doorbell(0x34, value=True)
    broken_bell = mmio.doorbell(0x38)
    window = mmio.ioregion(0x100, 16)
    raise_line = mmio.reg(0x40, access="wo")
    trigger = mmio.reg(0x44, access="wo")
    leave = mmio.reg(0x4C, access="wo")
    leaving_bell = mmio.doorbell(0x50)
    fetch_later = mmio.reg(0x48, access="wo")

    def setup(self) -> None:
        self.seen: list[object] = []
        self.blocked = threading.Event()
        self.go_on = threading.Event()
        self.wrote = threading.Event()

    @scratch.write
    def scratch_written(self, value: int) -> None:
        self.seen.append(("scratch", value))
        self.wrote.set()

    @fails.write
    def fail(self, value: int) -> None:
        raise RuntimeError(f"hook failed with {value}")

    @fails.read
    def fail_to_read(self) -> int:
        raise LookupError("no value")

    @blocks.write
    def block(self, _: int) -> None:
        self.blocked.set()
        assert self.go_on.wait(PATIENCE)

    @fetch.write
    def fetch_from(self, address: int) -> None:
        self.fetched = int.from_bytes(self.dma.read(address, 4), "little")

    @fetch_later.write
    def fetch_by_timer(self, address: int) -> None:
        self.after(0.01, lambda: self.fetch_from(address))

    @store.write
    def store_to(self, address: int) -> None:
        self.dma.write(address, self.scratch.to_bytes(4, "little"))

    @bell.ring
    def rang(self) -> None:
        self.seen.append(("ring", self.bell.rung, self.scratch))

    @value_bell.ring
    def rang_with(self, value: int) -> None:
        self.seen.append(("value", value))

    @broken_bell.ring
    def rang_badly(self) -> None:
        raise ZeroDivisionError("a bell that breaks")

    @window.write
    def window_written(self, offset: int, size: int, value: int) -> None:
        self.seen.append(("window", offset, size, value))

    @window.read
    def window_read(self, offset: int, size: int) -> int:
        return 0x1122_3344_5566_7788

    @raise_line.write
    def set_line(self, value: int) -> None:
        if value:
            self.line.high()
        else:
            self.line.low()

    @leave.write
    def call_exit(self, how: int) -> None:
        if how == 1:
            self.after(0, sys.exit)
        elif how == 2:
            self.background(sys.exit)
        else:
            sys.exit("a hook leaves")

    @leaving_bell.ring
    def rang_to_leave(self) -> None:
        sys.exit("a bell leaves")

    @trigger.write
    def trigger_vector(self, value: int) -> None:
        self.irq[value].trigger()


@contextlib.contextmanager
def running(worker: Worker) -> Iterator[Worker]:
    """The worker on a thread; it has ended when the block has."""
    thread = threading.Thread(target=worker.run, name="worker")
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()


@contextlib.contextmanager
def served(
    device: PciDevice, *, memory: Memory | None = None, proposal: Capabilities = PROPOSAL, enabled: bool = True
) -> Iterator[Client]:
    """A client of ``device``, which has been told to decode memory and may be bus master."""
    ours, theirs = socket.socketpair()
    with running(Worker(device, connection=theirs)), Client(ours, memory=memory, proposal=proposal) as client:
        if enabled:
            client.write(RegionIndex.CONFIG, COMMAND, MEMORY_AND_MASTER.to_bytes(2, "little"))
        yield client


@contextlib.contextmanager
def sub_regions(client: Client, bar: int = 0) -> Iterator[dict[int, SubRegion]]:
    """What a BAR handed over, by offset."""
    found = client.io_fds(bar)
    try:
        yield {sub.offset: sub for sub in found}
    finally:
        for fd in set().union(*map(descriptors, found)):
            os.close(fd)


def write(client: Client, offset: int, value: int, *, size: int = 4, posted: bool = False) -> None:
    client.write(0, offset, value.to_bytes(size, "little"), posted=posted)


def read(client: Client, offset: int, size: int = 4) -> int:
    return int.from_bytes(client.read(0, offset, size), "little")


@contextlib.contextmanager
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def wait_until(true: Callable[[], bool], timeout: float = PATIENCE) -> None:
    """Until ``true()``; an AssertionError when that takes too long."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextlib.contextmanager
def no_more_fds() -> Iterator[None]:
    """No descriptor can be opened by this process meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # poll(2) wants as many as it polls
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def heard(fd: int, timeout: float = PATIENCE) -> int:
    """The eventfd's count, waited for; 0 when nothing came."""
    waiter = select.poll()
    waiter.register(fd, select.POLLIN)
    return os.eventfd_read(fd) if waiter.poll(timeout * 1000) else 0


MSIX = IrqIndex.MSIX
