"""Images opened with O_DIRECT: transfers that the kernel carries out, and those that it will not."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.status import Status
from bellwire.model.jobs import Job
from bellwire.pieces import MOST_PIECES
from bellwire.storage import Disk
from bellwire.storage.aio import DirectPool, Transfer
from bellwire.testing import Guest
from nvme.driver import PAGE, Driver, prps, transfer
from nvme.driving import ServedMachine, driving

SIZE = 1 << 20


@pytest.fixture
def image(disk_folder: Path) -> Path:
    path = disk_folder / "disk.img"
    path.write_bytes(random.Random(5).randbytes(SIZE))
    return path


@pytest.fixture
def driver(image: Path) -> Iterator[Driver]:
    with driving(image=str(image), block_size=PAGE, direct=True) as driver:
        yield driver


@pytest.fixture
def slow_ways(monkeypatch: pytest.MonkeyPatch) -> list[Transfer]:
    """The transfers that threads have done."""
    done: list[Transfer] = []
    run = Transfer.run

    def noted(self: Transfer) -> None:
        done.append(self)
        run(self)

    monkeypatch.setattr(Transfer, "run", noted)
    return done


def test_what_is_read_is_what_the_image_holds(driver: Driver, image: Path, slow_ways: list[Transfer]) -> None:
    queues = driver.create_queues(1, 64)
    pages = [driver.allocate(PAGE) for _ in range(32)]
    cids = [
        queues.put(IoOpcode.READ, nsid=1, prp1=page, dwords=(3 * number % 256,)) for number, page in enumerate(pages)
    ]
    queues.ring()
    assert [done.status for done in queues.wait(*cids)] == [0] * 32
    content = image.read_bytes()
    for number, page in enumerate(pages):
        start = 3 * number % 256 * PAGE
        assert driver.memory[page : page + PAGE] == content[start : start + PAGE]
    assert slow_ways == []


def test_what_is_written_is_in_the_image(driver: Driver, image: Path) -> None:
    queues = driver.create_queues(1, 64)
    data = random.Random(6).randbytes(8 * PAGE)
    address = driver.allocate(len(data))
    driver.memory[address : address + len(data)] = data
    assert transfer(queues, IoOpcode.WRITE, address, 5, 8, shift=12).status == 0
    assert image.read_bytes()[5 * PAGE : 13 * PAGE] == data


def test_pages_here_and_there_are_one_transfer(driver: Driver, image: Path, slow_ways: list[Transfer]) -> None:
    queues = driver.create_queues(1, 64)
    pages = [driver.allocate(2 * PAGE) for _ in range(5)]
    prp1, prp2 = prps(driver, pages)
    assert queues.do(IoOpcode.READ, nsid=1, prp1=prp1, prp2=prp2, dwords=(7, 0, 4)).status == 0
    content = image.read_bytes()
    for number, page in enumerate(pages, 7):
        assert driver.memory[page : page + PAGE] == content[number * PAGE : (number + 1) * PAGE]
    assert slow_ways == []


@pytest.mark.parametrize("opcode", [IoOpcode.READ, IoOpcode.WRITE])
def test_memory_that_the_medium_finds_misaligned_is_copied(driver: Driver, image: Path, opcode: IoOpcode) -> None:
    queues = driver.create_queues(1, 64)
    address = driver.allocate(3 * PAGE) + 4
    driver.memory[address : address + 2 * PAGE] = bytes(2 * PAGE)
    assert transfer(queues, opcode, address, 1, 2, shift=12).status == 0
    assert driver.memory[address : address + 2 * PAGE] == image.read_bytes()[PAGE : 3 * PAGE]


def test_an_image_cut_short_is_an_error_of_the_command(driver: Driver, image: Path) -> None:
    queues = driver.create_queues(1, 64)
    os.truncate(image, 10 * PAGE)
    address = driver.allocate(4 * PAGE)
    assert transfer(queues, IoOpcode.READ, address, 8, 4, shift=12).status & 0x7FF == 0x281
    assert transfer(queues, IoOpcode.READ, address, 6, 4, shift=12).status == 0


def test_what_ends_while_the_client_takes_other_memory_back_is_told(driver: Driver, image: Path) -> None:
    queues = driver.create_queues(1, 64)
    os.truncate(image, 31 * PAGE)
    assert isinstance(driver.machine, ServedMachine)
    client = driver.machine.client
    client.dma_map(1 << 40, PAGE)
    page = driver.allocate(PAGE)
    cids = [queues.put(IoOpcode.READ, nsid=1, prp1=page, dwords=(block,)) for block in range(32)]
    queues.ring()
    client.dma_unmap(1 << 40, PAGE)
    assert [done.status & 0x7FF for done in queues.wait(*cids)] == [0] * 31 + [0x281]


class Threads:
    """A pool that is handed jobs, and does none."""

    busy = False

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def submit(self, *jobs: Job) -> None:
        self.jobs += jobs

    def finish(self) -> bool:
        """Nothing is under way."""
        return False

    def settle(self) -> None:
        """As before."""

    close = settle


@pytest.mark.parametrize(("pieces", "slow"), [(1, False), (MOST_PIECES, False), (MOST_PIECES + 1, True)])
def test_more_pieces_than_the_kernel_takes_are_for_the_threads(image: Path, pieces: int, slow: bool) -> None:
    """A chain of virtio-blk may be so long."""
    os.truncate(image, PAGE * pieces)
    with (
        contextlib.closing(Disk.open(image, readonly=True, direct=True)) as disk,
        Guest(Nvme, size=SIZE) as guest,
        mmap.mmap(-1, PAGE) as memory,
        memoryview(memory) as page,
    ):
        ended: list[Job] = []
        threads = Threads()
        pool = DirectPool(guest.device, threads, ended.extend)
        transfer = Transfer(disk, [page] * pieces, 0, write=False)
        pool.submit(transfer)
        pool.finish()
        guest.poll()
        assert threads.jobs == ([transfer] if slow else [])
        assert ended == ([] if slow else [transfer])
        pool.close()


def test_a_reset_waits_for_what_is_under_way(driver: Driver) -> None:
    queues = driver.create_queues(1, 64)
    page = driver.allocate(PAGE)
    for block in range(32):
        queues.put(IoOpcode.READ, nsid=1, prp1=page, dwords=(block,))
    queues.ring()
    driver.disable()
    again = Driver(driver.machine)
    again.enable()
    assert transfer(again.create_queues(1, 16), IoOpcode.READ, page, 0, 1, shift=12).status == 0


def test_what_else_there_is_works_past_the_page_cache(driver: Driver, image: Path) -> None:
    queues = driver.create_queues(1, 64)
    page = driver.allocate(2 * PAGE) + 4
    driver.memory[page : page + PAGE] = image.read_bytes()[3 * PAGE : 4 * PAGE]
    assert transfer(queues, IoOpcode.COMPARE, page, 3, 1, shift=12).status == 0
    assert transfer(queues, IoOpcode.COMPARE, page, 4, 1, shift=12).status & 0x7FF == 0x285
    assert queues.do(IoOpcode.VERIFY, nsid=1, dwords=(0, 0, 255)).status == 0
    source = driver.allocate(PAGE)
    struct.pack_into("<8xQH14x", driver.memory, source, 3, 1)
    assert queues.do(IoOpcode.COPY, nsid=1, prp1=source, dwords=(100,)).status == 0
    content = image.read_bytes()
    assert content[100 * PAGE : 102 * PAGE] == content[3 * PAGE : 5 * PAGE]
    assert driver.admin.do(AdminOpcode.FORMAT_NVM, nsid=1, dwords=(1,)).status == 0
    assert image.read_bytes() == bytes(SIZE)


def test_a_format_in_blocks_that_the_medium_does_not_take_erases_nothing(
    driver: Driver, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, read = image.read_bytes(), Disk.read

    def as_a_disk_of_4_kib(disk: Disk, buffers: list[bytearray], offset: int) -> None:
        if len(buffers[0]) % PAGE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        read(disk, buffers, offset)

    monkeypatch.setattr(Disk, "read", as_a_disk_of_4_kib)
    assert driver.admin.do(AdminOpcode.FORMAT_NVM, nsid=1, dwords=(0,)).code == Status.INVALID_FORMAT
    assert image.read_bytes() == before
