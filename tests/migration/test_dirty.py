"""The log of a device's writes has just the pages that have changed."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwire import Bar, PciDevice
from bellwire.bundled.edu import DMA_START, DmaCommand, Edu
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import IoOpcode
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.virtio import Feature
from migration.moving import Machine, MovingDriver, NvmeMachine
from nvme.driver import Driver as NvmeDriver
from vfio_user import FeatureFlags, RemoteError, VfioUserError, dirty_pages
from vfio_user.written_pages import WrittenPages
from virtio.card import PLAIN

PAGE = 4096
RINGS = [{Feature.EVENT_IDX}, {Feature.RING_PACKED}]
IDS = ["split", "packed"]
REQUEST = struct.Struct("<IIQ")


@pytest.fixture(autouse=True)
def kernel() -> None:
    try:
        WrittenPages().close()
    except VfioUserError as error:
        pytest.skip(str(error))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    return path


def check(machine: Machine, work: Callable[[], object], finished: Callable[[], object]) -> list[int]:
    """Log ``work``, which writes memory by the device alone, and compare. Returns the pages."""
    machine.client.dirty.start([(0, machine.size)], PAGE)
    before = bytes(machine.memory)
    work()
    finished()
    found = machine.dirty()
    assert found == machine.written(before)
    assert not machine.dirty(), "a page is reported once"
    machine.client.dirty.stop()
    return found


@pytest.mark.slow
def test_edu_dirties_what_it_copies() -> None:
    with Machine(Edu) as machine:

        def copy() -> None:
            for register, value in ((Edu.dma_source, DMA_START), (Edu.dma_destination, 0x5FF0), (Edu.dma_count, 64)):
                machine.client.write(0, register.offset, struct.pack("<Q", value))
            command = DmaCommand.START | DmaCommand.TO_GUEST
            machine.client.write(0, Edu.dma_command.offset, struct.pack("<Q", command))

        def idle() -> bool:
            return not machine.read(0, Edu.dma_command.offset, 8) & DmaCommand.START

        machine.client.write(0, Edu.dma_source.offset, struct.pack("<Q", 0x2000))
        machine.memory[0x2000:0x2040] = os.urandom(64)
        machine.client.write(0, Edu.dma_destination.offset, struct.pack("<Q", DMA_START))
        machine.client.write(0, Edu.dma_count.offset, struct.pack("<Q", 64))
        machine.client.write(0, Edu.dma_command.offset, struct.pack("<Q", DmaCommand.START))
        machine.wait(idle)
        assert check(machine, copy, lambda: machine.wait(idle)) == [5, 6]


@pytest.mark.slow
@pytest.mark.parametrize("ring", RINGS, ids=IDS)
@pytest.mark.parametrize("direct", [False, True])
def test_a_virtio_disk_dirties_what_it_reads_and_its_ring(image: Path, ring: set[int], direct: bool) -> None:
    with Machine(VirtioBlk, image=str(image), direct=direct) as machine:
        driver = MovingDriver(machine)
        driver.start(ring, size=16)
        queue = driver.queues[0]
        for sector in range(3):
            driver._free = 0x20000 + 0x8000 * sector
            queue.add(REQUEST.pack(0, 0, 8 * sector), write=[PAGE * 2, 1])
        queue.add(REQUEST.pack(1, 0, 64), bytes(512), write=[1])
        pages = check(machine, queue.kick, lambda: machine.collect(queue.used, 4))
        assert len(pages) >= 7


@pytest.mark.slow
def test_an_nvme_controller_dirties_what_it_reads_and_its_completions(image: Path) -> None:
    with Machine(Nvme, image=str(image)) as machine:
        driver = NvmeDriver(NvmeMachine(machine))
        driver.enable()
        queues = driver.create_queues(1, 16)
        queues.auto_head = False
        cids = [queues.put(IoOpcode.READ, nsid=1, prp1=0x80000 + 2 * PAGE * n, dwords=(8 * n, 0, 7)) for n in range(4)]
        cids.append(queues.put(IoOpcode.WRITE, nsid=1, prp1=0x80000, dwords=(100, 0, 0)))
        pages = check(machine, queues.ring, lambda: machine.collect(queues.reap, len(cids)))
        assert pages == [queues.cq // PAGE, 0x80, 0x82, 0x84, 0x86]


@pytest.mark.slow
@pytest.mark.parametrize("ring", RINGS, ids=IDS)
def test_a_virtio_card_dirties_what_it_receives(tmp_path: Path, ring: set[int]) -> None:
    with Machine(VirtioNet, local=str(tmp_path / "card"), dgram=str(tmp_path / "peer")) as machine:
        driver = MovingDriver(machine)
        driver.start(ring, range(2), size=16)
        receive, send = driver.queues[0], driver.queues[1]
        for at in range(4):
            driver._free = 0x40000 + 0x4000 * at
            receive.add(write=1526)
        receive.kick()
        driver._free = 0x60000
        send.add(PLAIN, bytes(60))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:

            def frames() -> None:
                send.kick()
                for _ in range(2):
                    peer.sendto(b"\xff" * 12 + os.urandom(500), str(tmp_path / "card"))

            pages = check(machine, frames, lambda: machine.collect(lambda: receive.used() + send.used(), 3))
            assert {0x40, 0x44} <= {*pages}
            assert not {0x48, 0x4C} & {*pages}


class Writer(PciDevice, vendor=0x1234, device=0xD127, class_code=0x088000):
    """Writes memory in every way that device code has."""

    mmio = Bar(0, size=4096)
    go = mmio.reg(0)
    one = mmio.reg(4)

    @go.write
    def write(self, at: int) -> None:
        self.dma.write(at, b"written")
        self.dma.map(at + PAGE, 8, write=True)[0][:] = b"mapped.."
        shared = self.dma.shared_map(at, write=True)
        if shared is not None:
            shared.view[at + 2 * PAGE - shared.start] = 7
        self.dma.whole(at + 3 * PAGE, 8, write=True)[0] = 7

    @one.write
    def copy(self, at: int) -> None:
        self.dma.write(at, b"written")


def go(machine: Machine, at: int) -> None:
    machine.write(0, at, offset=0, size=4)


def test_each_way_to_write_memory_is_seen_and_reading_is_not() -> None:
    with Machine(Writer) as machine:
        assert check(machine, lambda: go(machine, 0x10000), lambda: None) == [0x10, 0x11, 0x12, 0x13]


def test_pages_of_another_size_are_joined_or_split() -> None:
    with Machine(Writer) as machine:
        dirty = machine.client.dirty
        assert dirty.start([], 512) == PAGE
        go(machine, 0x1F000)
        assert dirty.report(0, machine.size, 0x10000) == (0b110).to_bytes(8, "little")
        go(machine, 0x1F000)
        assert dirty.report(0x1F000, PAGE, 512) == (0xFF).to_bytes(8, "little")
        assert dirty.report(0x20000, PAGE, PAGE)[0] == 1, "what was not asked for is not forgotten"


def test_a_log_outlives_the_map_and_has_maps_that_come() -> None:
    with Machine(Writer) as machine:
        dirty, client = machine.client.dirty, machine.client
        dirty.start([], PAGE)
        go(machine, 0x10000)
        client.dma_unmap(0, machine.size)
        fd = os.memfd_create("more")
        os.ftruncate(fd, 1 << 20)
        client.dma_map(1 << 20, 1 << 20, fd)
        os.close(fd)
        go(machine, (1 << 20) + 0x8000)
        bits = int.from_bytes(dirty.report(0, 2 << 20, PAGE), "little")
        assert [n for n in range(512) if bits >> n & 1] == [0x10, 0x11, 0x12, 0x13, 0x108, 0x109, 0x10A, 0x10B]


def test_memory_in_pieces_that_is_joined_is_logged() -> None:
    with Machine(Writer) as machine:
        machine.client.dma_unmap(0, machine.size)
        for page in range(0x10, 0x20):
            fd = os.memfd_create("piece")
            os.ftruncate(fd, PAGE)
            machine.client.dma_map(page * PAGE, PAGE, fd)
            os.close(fd)
        machine.client.dirty.start([], PAGE)
        machine.serving.call(lambda: machine.serving.device.dma.whole(0x10FF0, 32, write=True)[:].__setitem__(20, 1))
        assert machine.dirty() == [0x11]


class Zeros:
    def read(self, address: int, count: int) -> bytes:
        return bytes(count)

    def write(self, address: int, data: bytes) -> None:
        return


def test_writes_by_message_are_logged() -> None:
    with Machine(Writer) as machine:
        machine.client.dma_unmap(0, machine.size)
        machine.client.memory = Zeros()
        machine.client.dma_map(0, machine.size)
        machine.client.dirty.start([], PAGE)
        machine.client.write(0, 4, struct.pack("<I", 0x3FFE), posted=True)
        deadline = time.monotonic() + 30
        found: list[int] = []
        while not found and time.monotonic() < deadline:
            machine.client.poll(0.01)
            found = machine.dirty()
        assert found == [3, 4]


def test_the_log_can_be_probed() -> None:
    with Machine(Writer) as machine:
        for feature in (6, 7, 8):
            machine.client.device_feature(FeatureFlags.PROBE, feature)


def test_what_cannot_be_logged_or_reported_is_refused_by_name() -> None:
    with Machine(Writer) as machine:
        dirty = machine.client.dirty
        with pytest.raises(RemoteError):
            dirty.report(0, PAGE, PAGE)
        dirty.start([(0, 4 * PAGE)], PAGE)
        with pytest.raises(RemoteError, match="busy"):
            dirty.start([(0, 4 * PAGE)], PAGE)
        with pytest.raises(RemoteError):
            dirty.report(3 * PAGE, 2 * PAGE, PAGE)
        dirty.stop()
        dirty.stop()
        with pytest.raises(RemoteError):
            dirty.start([(0, 0)], PAGE)
        with pytest.raises(RemoteError):
            dirty.start([(n * 2 * PAGE, PAGE) for n in range(1025)], PAGE)
        assert dirty.start([], PAGE) == PAGE


def test_memory_beyond_the_limit_is_always_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirty_pages, "MOST_WATCHED", 1 << 20)
    with Machine(Writer) as machine:
        fd = os.memfd_create("more")
        os.ftruncate(fd, 4 * PAGE)
        machine.client.dma_map(1 << 20, 4 * PAGE, fd)
        os.close(fd)
        machine.client.dirty.start([], PAGE)
        for _ in range(2):
            assert machine.client.dirty.report(1 << 20, 4 * PAGE, PAGE)[0] == 0b1111
        machine.client.dma_unmap(1 << 20, 4 * PAGE)
        assert machine.client.dirty.report(1 << 20, 4 * PAGE, PAGE)[0] == 0b1111
        assert machine.client.dirty.report(1 << 20, 4 * PAGE, PAGE)[0] == 0
        assert not machine.dirty()


def test_huge_pages_are_logged_as_a_whole(huge_file: int) -> None:
    huge = os.fstat(huge_file).st_blksize
    with Machine(Writer) as machine:
        machine.client.dma_map(1 << 30, huge, huge_file)
        machine.client.dirty.start([], PAGE)
        machine.serving.call(machine.serving.device.dma.write, (1 << 30) + 0x5000, b"x")
        assert machine.client.dirty.report((1 << 30) + 0x5000, PAGE, PAGE)[0] == 1
        assert machine.client.dirty.report(1 << 30, huge, PAGE).count(b"\xff") >= 63
        assert machine.client.dirty.report(1 << 30, huge, PAGE) == bytes(64)
