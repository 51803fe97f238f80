"""What a device hands on to others: doorbells, interrupts, guest memory, and whole queues."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwire import Bar, MsiX, PciDevice
from bellwire.bundled.vhost import Vhost
from devices.serving import COMMAND, MEMORY_AND_MASTER, eventfd, served, sub_regions
from vfio_user import Client, IrqIndex, KeptFiles, RegionIndex
from vfio_user.kept_files import MOST_FILES
from vhost.program import Program
from vhost.test_vhost_device import Start
from virtio.driver import Driver
from virtio.echo import Echo

PAGE = 4096
PATIENCE = 30.0


class Lender(PciDevice, vendor=0x1234, device=0xF00D, class_code=0xFF0000):
    """Lends a doorbell when it is told to, and says what it has to hand on."""

    irq = MsiX(2)
    mmio = Bar(0, size=4096)
    lends = mmio.reg(0x00)
    bells = mmio.ioregion(0x10, 16, posted=True, bell=4)
    rung = mmio.reg(0x20)
    memory = mmio.reg(0x24, access="ro")
    changes = mmio.reg(0x28)

    def setup(self) -> None:
        self.dma.keep_files()
        self.ring_by_event(Lender.bells)
        self.lent: int | None = None
        self.sizes: list[tuple[int, int, int]] = []
        self.mapped: list[int] = []
        self.heard: list[tuple[list[tuple[int, int, int]], list[int]]] = []

    @lends.write
    def lend_or_not(self, value: int) -> None:
        if value:
            self.lent = self.lend(Lender.bells, 4)
        else:
            self.take_back(Lender.bells, 4)

    @bells.ring
    def bell_rung(self, offset: int) -> None:
        self.rung += offset

    @bells.write
    def bell_written(self, offset: int, _size: int, _value: int) -> None:
        self.rung += 100 * offset

    def memory_changed(self) -> None:
        self.sizes = [(each.address, each.size, each.offset) for each in self.dma.files()]
        assert self.core.host is not None
        self.mapped = [each.address for each in self.core.host.files()]
        self.heard.append((self.sizes, self.mapped))

    def wires_changed(self) -> None:
        self.changes += 1


@pytest.fixture
def lender() -> Lender:
    return Lender()


@pytest.fixture
def client(lender: Lender) -> Iterator[Client]:
    with served(lender) as client:
        yield client


def number(client: Client, offset: int) -> int:
    return int.from_bytes(client.read(0, offset, 4), "little")


def write(client: Client, offset: int, value: int) -> None:
    client.write(0, offset, value.to_bytes(4, "little"))


def test_rings_of_a_lent_doorbell_stay_in_its_eventfd(lender: Lender, client: Client) -> None:
    with sub_regions(client) as found:
        write(client, 0x00, 1)
        os.eventfd_write(found[0x14].fd, 3)
        os.eventfd_write(found[0x18].fd, 1)
        assert number(client, 0x20) == 8, "another doorbell of the row is not lent"
        assert lender.lent is not None
        assert os.eventfd_read(lender.lent) == 3
        os.eventfd_write(found[0x14].fd, 1)
        write(client, 0x00, 0)
        assert number(client, 0x20) == 12, "what nobody has read rings the device"


def test_a_ring_of_a_lent_doorbell_by_message_runs_the_write_hook(client: Client) -> None:
    write(client, 0x00, 1)
    write(client, 0x14, 7)
    assert number(client, 0x20) == 400


def test_without_a_client_there_is_nothing_to_lend() -> None:
    device = Lender()
    device.dma.keep_files()
    assert device.lend(Lender.bells, 4) is None
    device.take_back(Lender.bells, 4)
    assert device.dma.files() == []
    device.core.close()


def test_a_vectors_eventfd_is_there_while_a_signal_may_reach_the_guest(lender: Lender, client: Client) -> None:
    control = lender.core.config.at[0x11] + 2

    def handed() -> int | None:
        return lender.irq[1].fd

    with eventfd() as fd:
        client.trigger_eventfds(IrqIndex.MSIX, 0, [fd, fd])
        assert handed() is None, "MSI-X is off"
        client.write(RegionIndex.CONFIG, control, b"\0\x80")
        fd_of_vector = handed()
        assert fd_of_vector is not None
        os.eventfd_write(fd_of_vector, 1)
        assert os.eventfd_read(fd) == 1
        client.write(RegionIndex.CONFIG, COMMAND, b"\2\0")
        assert handed() is None, "bus mastering is off"
        client.write(RegionIndex.CONFIG, COMMAND, MEMORY_AND_MASTER.to_bytes(2, "little"))
        client.write(RegionIndex.CONFIG, control, b"\0\xc0")
        assert handed() is None, "the function is masked"
        client.write(RegionIndex.CONFIG, control, b"\0\x80")
        client.mask(IrqIndex.MSIX, 1)
        assert handed() is None, "the client has masked it"
        client.unmask(IrqIndex.MSIX, 1)
        assert handed() is not None
        client.release_eventfds(IrqIndex.MSIX, 0, 2)
        assert handed() is None, "the client has taken it back"


def test_the_device_hears_of_each_change_of_its_wires(client: Client) -> None:
    write(client, 0x28, 0)
    with eventfd() as fd:
        client.trigger_eventfds(IrqIndex.MSIX, 0, [fd, fd])
    client.mask(IrqIndex.MSIX, 1)
    client.write(RegionIndex.CONFIG, COMMAND, b"\2\0")
    assert number(client, 0x28) == 3


def test_files_of_memory_are_kept_while_it_is_mapped(
    lender: Lender, client: Client, memfd: Callable[[int], int]
) -> None:
    fd = memfd(8 * PAGE)
    client.dma_map(0, PAGE, fd, PAGE)
    client.dma_map(0x10000, 2 * PAGE, fd, 4 * PAGE)
    client.dma_map(0x20000, PAGE, fd, 0, write=False)
    client.dma_map(0x30000, PAGE)
    assert lender.sizes == [(0, PAGE, PAGE), (0x10000, 2 * PAGE, 4 * PAGE)]
    first, second = lender.dma.files()
    assert first.fd == second.fd, "one descriptor for all maps of a file"
    assert os.fstat(first.fd).st_ino == os.fstat(fd).st_ino
    client.dma_unmap(0, PAGE)
    assert os.fstat(second.fd).st_ino == os.fstat(fd).st_ino
    client.dma_unmap(0x10000, 2 * PAGE)
    assert lender.sizes == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(second.fd)


def test_a_device_hears_of_memory_that_goes_while_it_is_still_mapped(
    lender: Lender, client: Client, memfd: Callable[[int], int]
) -> None:
    client.dma_map(0, PAGE, memfd(PAGE))
    client.dma_map(0x10000, PAGE, memfd(PAGE))
    client.dma_unmap(0x10000, PAGE)
    assert (lender.sizes, lender.mapped) == ([(0, PAGE, 0)], [0, 0x10000])
    client.dma_unmap(0, PAGE)
    assert (lender.sizes, lender.mapped) == ([], [0])


def test_a_device_hears_that_its_client_goes_while_memory_is_still_mapped(
    lender: Lender, memfd: Callable[[int], int]
) -> None:
    with served(lender) as client:
        client.dma_map(0, PAGE, memfd(PAGE))
        lender.heard.clear()
    assert ([], [0]) in lender.heard


def test_a_client_cannot_make_a_device_keep_descriptors_without_end(memfd: Callable[[int], int]) -> None:
    files = KeptFiles()
    kept = [files.keep(memfd(PAGE)) for _ in range(MOST_FILES + 1)]
    assert kept[-1] is None
    for file in kept[:-1]:
        assert file is not None
        file.release()
    assert len(files) == 0


def test_what_is_no_regular_file_is_not_kept() -> None:
    with eventfd() as fd:
        assert KeptFiles().keep(fd) is None


def test_memory_that_is_taken_back_is_forgotten_by_the_back_end_before_the_answer(
    start: Start, place: Path, memfd: Callable[[int], int]
) -> None:
    program: Program = start()
    with served(Vhost(backend=f"unix:{place}", type="rng")) as client:
        for register, value, size in RUN:
            client.write(0, register, value.to_bytes(size, "little"))
        client.dma_map(0, 16 * PAGE, memfd(16 * PAGE))
        assert list(program.regions) == [(0, 16 * PAGE, 0, 0)], "the rings lie there, so they run now"
        client.dma_map(0x100000, PAGE, memfd(PAGE))
        assert len(program.regions) == 2
        client.dma_unmap(0x100000, PAGE)
        assert len(program.regions) == 1
        assert program.rings[0].enabled
        client.dma_unmap(0, 16 * PAGE)
        assert not program.regions
        assert not program.rings[0].enabled


RUN = [
    *((0x14, value, 1) for value in (1, 3)),
    *((0x08, 1, 4), (0x0C, 1, 4), (0x14, 11, 1)),
    *((0x18, 16, 2), (0x20, 0x1000, 8), (0x28, 0x2000, 8), (0x30, 0x3000, 8), (0x1C, 1, 2), (0x14, 15, 1)),
]
"""Offsets, values and sizes: registers by which a driver with one queue makes itself ready."""


# -- a queue in other hands


def test_a_queue_is_handed_over_with_its_two_descriptors() -> None:
    kicks: list[int] = []
    calls: list[int] = []
    with Driver(Echo) as driver:
        driver.start()
        queue = driver.device.virtqueues[0]
        queue.hand_over(kicks.append, calls.append)
        driver.queues[0].add(b"hello", write=5)
        driver.guest.ring(Echo.notify, index=0)
        assert driver.queues[0].answers() == [], "the device does not touch it"
        assert os.eventfd_read(kicks[-1]) == 1
        driver.queues[0].kick()
        assert os.eventfd_read(kicks[-1]) == 1, "a ring by message arrives there too"
        os.eventfd_write(calls[-1], 1)
        driver.guest.poll()
        assert driver.guest.interrupts[IrqIndex.MSIX, 1] == 1
        queue.take_back()
        driver.queues[0].kick()
        assert driver.queues[0].answers() == [b"olleh"]


def test_the_call_is_another_one_while_the_vector_is_masked() -> None:
    kicks: list[int] = []
    calls: list[int] = []
    with Driver(Echo) as driver:
        driver.start()
        driver.device.virtqueues[0].hand_over(kicks.append, calls.append)
        control = driver.device.core.config.at[0x11] + 2
        driver.guest.config_write(control, 0xC000, 2)
        assert (len(kicks), len(calls)) == (1, 2)
        os.eventfd_write(calls[1], 1)
        driver.guest.config_write(control, 0x8000, 2)
        assert calls[2] == calls[0] != calls[1]
        assert driver.guest.interrupts[IrqIndex.MSIX, 1] == 1, "what came meanwhile was pending"


def test_a_reset_takes_a_queue_back() -> None:
    kicks: list[int] = []
    with Driver(Echo) as driver:
        driver.start()
        driver.device.virtqueues[0].hand_over(kicks.append, lambda _: None)
        driver.start()
        driver.queues[0].send(b"ab", write=2)
        assert driver.queues[0].answers() == [b"ba"]
        assert not select.select(kicks, [], [], 0)[0]


def test_a_queue_whose_descriptors_nobody_takes_stays_the_devices() -> None:
    def refuse(_: int) -> None:
        raise ConnectionError("the other side has gone")

    with Driver(Echo) as driver:
        driver.start()
        queue, before = driver.device.virtqueues[0], set(os.listdir("/proc/self/fd"))
        for kick, call in ((refuse, lambda _: None), (lambda _: None, refuse)):
            with pytest.raises(ConnectionError, match="has gone"):
                queue.hand_over(kick, call)
        ours = 2  # the guest keeps the eventfds of the doorbell and of the vector
        assert len(set(os.listdir("/proc/self/fd")) - before) == ours
        driver.queues[0].add(b"hello", write=5)
        driver.guest.ring(Echo.notify, index=0)
        assert driver.queues[0].answers() == [b"olleh"]
