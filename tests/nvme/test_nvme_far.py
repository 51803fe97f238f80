"""Blocks beyond 2 TiB, whose numbers need both dwords (§6.9, §6.15), and host memory that is read-only."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import IoOpcode
from bellwire.bundled.nvme.status import Status
from bellwire.testing import Guest
from nvme.driver import MEMORY, PAGE, Driver, Queues, TestMachine, transfer
from vfio_user import DmaFlags, DmaMap

SIZE = 5 << 40
FAR = 2 << 32 | 5
"""A block beyond 4 TiB: either dword alone, or the high one shifted by a bit more or less, is another block."""


@pytest.fixture
def far(tmp_path: Path) -> Iterator[tuple[Queues, int]]:
    """A queue, and a descriptor of the image: it is all hole."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(SIZE)
    with path.open("r+b") as file, Guest(Nvme, memory=MEMORY, image=str(path)) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        yield driver.create_queues(), file.fileno()


def test_a_far_block_is_read_and_written_where_it_lies(far: tuple[Queues, int]) -> None:
    queues, image = far
    driver, data = queues.driver, os.urandom(1024)
    page = driver.allocate(PAGE)
    driver.memory[page : page + 1024] = data
    assert transfer(queues, IoOpcode.WRITE, page, FAR, 2).status == 0
    assert os.pread(image, 1024, FAR * 512) == data
    assert os.pread(image, 1024, 5 * 512) == bytes(1024)
    os.pwrite(image, data[::-1], FAR * 512)
    assert transfer(queues, IoOpcode.READ, page, FAR, 2).status == 0
    assert bytes(driver.memory[page : page + 1024]) == data[::-1]
    assert transfer(queues, IoOpcode.COMPARE, page, FAR, 2).status == 0
    assert transfer(queues, IoOpcode.COMPARE, page, 5, 2).code == Status.COMPARE_FAILURE
    assert transfer(queues, IoOpcode.VERIFY, page, FAR, 2).status == 0
    assert transfer(queues, IoOpcode.WRITE_ZEROES, page, FAR, 1).status == 0
    assert os.pread(image, 1024, FAR * 512) == bytes(512) + data[511::-1]


def test_a_far_block_that_was_marked_uncorrectable_is_the_one(far: tuple[Queues, int]) -> None:
    queues, _ = far
    page = queues.driver.allocate(PAGE)
    assert transfer(queues, IoOpcode.WRITE_UNCORRECTABLE, page, FAR, 1).status == 0
    for opcode in (IoOpcode.READ, IoOpcode.COMPARE, IoOpcode.VERIFY):
        assert transfer(queues, opcode, page, FAR, 1).code == Status.UNRECOVERED_READ_ERROR
        for block in (5, FAR - 1, FAR + 1):
            assert transfer(queues, opcode, page, block, 1).status == 0


def test_blocks_are_copied_far(far: tuple[Queues, int]) -> None:
    queues, image = far
    page = queues.driver.allocate(PAGE)
    os.pwrite(image, b"near" * 128, 9 * 512)
    os.pwrite(image, b"far." * 128, (FAR + 8) * 512)
    for source, target, data in ((9, FAR, b"near"), (FAR + 8, 40, b"far.")):
        queues.driver.memory[page : page + 32] = struct.pack("<QQHxx4x8x", 0, source, 0)
        done = queues.do(IoOpcode.COPY, nsid=1, prp1=page, dwords=(target & 0xFFFF_FFFF, target >> 32, 0))
        assert done.status == 0
        assert os.pread(image, 512, target * 512) == data * 128


def test_the_end_of_a_far_disk_is_its_end(far: tuple[Queues, int]) -> None:
    queues, _ = far
    page, last = queues.driver.allocate(PAGE), SIZE // 512 - 1
    for opcode in (IoOpcode.READ, IoOpcode.WRITE, IoOpcode.COMPARE, IoOpcode.VERIFY, IoOpcode.WRITE_ZEROES):
        assert transfer(queues, opcode, page, last, 1).status == 0
        assert transfer(queues, opcode, page, last, 2).code == Status.LBA_OUT_OF_RANGE


def test_memory_that_is_read_only_can_be_written_to_the_disk_and_not_read_into(driver: Driver) -> None:
    queues = driver.create_queues()
    page = driver.allocate(PAGE)
    guest = driver.machine.guest  # type: ignore[attr-defined]
    guest._dma.clear()
    for flags, start, end in (
        (DmaFlags.READ | DmaFlags.WRITE, 0, page),
        (DmaFlags.READ, page, page + PAGE),
        (DmaFlags.READ | DmaFlags.WRITE, page + PAGE, MEMORY),
    ):
        guest._dma.map(DmaMap(flags, start, start, end - start), os.dup(guest._memory_fd))
    guest.device.dma.changed()
    driver.memory = memoryview(mmap.mmap(guest._memory_fd, MEMORY))
    driver.memory[page : page + 512] = b"x" * 512
    assert transfer(queues, IoOpcode.WRITE, page, 7, 1).status == 0
    assert transfer(queues, IoOpcode.COMPARE, page, 7, 1).status == 0
    assert transfer(queues, IoOpcode.READ, page, 8, 1).code == Status.DATA_TRANSFER_ERROR
    assert transfer(queues, IoOpcode.COMPARE, page, 7, 1).status == 0


def test_a_closed_controller_has_ended_its_threads_and_closed_its_images(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    ended: list[str] = []
    with Guest(Nvme, memory=MEMORY, image=str(path)) as guest:
        (space,) = guest.device.controller.namespaces.attached
        fd, pool = space.disk.fd, guest.device.controller.engine.pool
        usual = pool.close

        def close() -> None:
            ended.append("threads")
            usual()

        pool.close = close  # type: ignore[method-assign]
        assert os.readlink(f"/proc/self/fd/{fd}") == str(path)
    assert ended == ["threads"]
    assert not any(
        os.readlink(f"/proc/self/fd/{each}") == str(path)
        for each in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{each}")
    )
