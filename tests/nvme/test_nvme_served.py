"""nvme in a worker: threads, memory that is not shared, shadow doorbells by ioeventfd, a disk that takes its time."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.status import Status
from bellwire.storage import Disk
from devices.serving import PATIENCE, sub_regions
from nvme.driver import CC, ENABLE, MEMORY, PAGE, Driver, Queues, transfer
from nvme.driving import ServedMachine, driving
from vfio_user import IoEventFd

pytestmark = pytest.mark.slow

READ, WRITE = IoOpcode.READ, IoOpcode.WRITE
BLOCKS = 1024


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(BLOCKS * PAGE))
    return path


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("cached", [True, False])
def test_random_writes_and_reads_at_depth_32_agree_with_a_model(image: Path, shared: bool, cached: bool) -> None:
    """Each slot owns every 32nd block, so that commands under way at once never touch the same one."""
    chance = random.Random(2)
    model = bytearray(image.read_bytes())
    if not cached:
        fd = os.open(image, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    with driving(image=str(image), block_size=PAGE, shared=shared) as driver:
        queues = driver.create_queues(1, 64)
        pages = [driver.allocate(PAGE) for _ in range(32)]
        for _ in range(12):
            expected: dict[int, tuple[int, int]] = {}
            for slot, page in enumerate(pages):
                block = chance.randrange(BLOCKS // 32) * 32 + slot
                if chance.random() < 0.5:
                    content = chance.randbytes(PAGE)
                    driver.memory[page : page + PAGE] = content
                    model[block * PAGE : (block + 1) * PAGE] = content
                    queues.put(WRITE, nsid=1, prp1=page, dwords=(block,), cid=slot)
                else:
                    queues.put(READ, nsid=1, prp1=page, dwords=(block,), cid=slot)
                expected[slot] = (page, block)
            queues.ring()
            for done in queues.wait(*expected):
                assert done.status == 0
            for page, block in expected.values():
                assert driver.memory[page : page + PAGE] == model[block * PAGE : (block + 1) * PAGE]
    assert image.read_bytes() == model


class Gate:
    """Holds a disk's reads and writes back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.waiting = threading.Semaphore(0)
        for method in (Disk.read, Disk.write):
            monkeypatch.setattr(Disk, method.__name__, self.slow(method))
        monkeypatch.setattr("bellwire.storage.disk._NOWAIT", 0)  # nothing can be read without waiting

    def slow(self, method: Callable[..., None]) -> Callable[..., None]:
        def wait_first(*arguments: Any, **keywords: Any) -> None:
            self.waiting.release()
            assert self.open.wait(PATIENCE)
            method(*arguments, **keywords)

        return wait_first


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def start_read(driver: Driver, queues: Queues, gate: Gate) -> int:
    page = driver.allocate(PAGE)
    cid = queues.put(READ, nsid=1, prp1=page, dwords=(0,))
    queues.ring()
    assert gate.waiting.acquire(timeout=PATIENCE)
    return cid


@pytest.mark.parametrize("how", ["the client leaves", "the client takes its memory back"])
def test_writes_under_way_are_done_before_the_memory_goes(image: Path, gate: Gate, how: str) -> None:
    """Whoever keeps a view of memory that is gone sees zeros, and those must not get into the image."""
    with contextlib.ExitStack() as stack:
        driver = stack.enter_context(driving(image=str(image), block_size=PAGE, threads=1))
        queues = driver.create_queues(1)
        page = driver.allocate(PAGE)
        driver.memory[page : page + PAGE] = b"bell" * 1024
        for block in range(8):
            queues.put(WRITE, nsid=1, prp1=page, dwords=(block,))
        queues.ring()
        assert gate.waiting.acquire(timeout=PATIENCE)
        assert isinstance(driver.machine, ServedMachine)
        threading.Timer(0.02, gate.open.set).start()
        if how == "the client leaves":
            driver.machine.client.close()
        else:
            driver.machine.client.dma_unmap(0, MEMORY)
            driver.machine.client.close()
    assert image.read_bytes()[: 8 * PAGE] == b"bell" * 1024 * 8


def test_a_slow_disk_holds_up_no_register_and_no_other_queue(image: Path, gate: Gate) -> None:
    with driving(image=str(image)) as driver:
        slow, quick = driver.create_queues(1), driver.create_queues(2)
        cid = start_read(driver, slow, gate)
        assert quick.do(IoOpcode.FLUSH, nsid=1).status == 0
        assert driver.csts == 1
        assert slow.reap() == []
        gate.open.set()
        assert slow.wait(cid)[0].status == 0


def test_a_stopping_controller_is_ready_until_the_disk_has_answered(image: Path, gate: Gate) -> None:
    with driving(image=str(image)) as driver:
        queues = driver.create_queues(1)
        start_read(driver, queues, gate)
        driver.machine.write(0x14, 0x0046_0000, 4)
        assert driver.csts == 1
        gate.open.set()
        driver.wait_for(3, 0)
        driver.admin = Queues(driver, 0, 32)
        driver.enable()
        assert driver.create_queues(1).do(IoOpcode.FLUSH, nsid=1).status == 0


def test_the_flush_of_an_earlier_shutdown_does_not_end_a_later_one(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, later, begun = threading.Event(), threading.Event(), threading.Semaphore(0)
    waits = iter([earlier, later])

    def flush(_: Disk) -> None:
        wait = next(waits, None)
        begun.release()
        assert wait is None or wait.wait(PATIENCE)

    with driving(image=str(image)) as driver:
        monkeypatch.setattr(Disk, "flush", flush)
        driver.machine.write(CC, ENABLE | 0x4000, 4)
        assert begun.acquire(timeout=PATIENCE)
        driver.disable()
        driver.enable()
        queues = driver.create_queues(1)
        driver.machine.write(CC, ENABLE | 0x4000, 4)
        assert begun.acquire(timeout=PATIENCE)
        earlier.set()
        assert transfer(queues, WRITE, driver.allocate(PAGE), 0, 8).status == 0  # told after what ended before
        assert driver.csts & 0xC == 0x4
        later.set()
        driver.wait_for(0xC, 0x8)


def test_a_device_reset_waits_for_the_disk(image: Path, gate: Gate) -> None:
    with driving(image=str(image)) as driver:
        start_read(driver, driver.create_queues(1), gate)
        threading.Timer(0.02, gate.open.set).start()
        assert isinstance(driver.machine, ServedMachine)
        driver.machine.client.reset()
        assert driver.csts == 0


def test_a_queue_is_deleted_once_the_disk_has_answered(image: Path, gate: Gate) -> None:
    with driving(image=str(image)) as driver:
        queues = driver.create_queues(1)
        cid = start_read(driver, queues, gate)
        deletion = driver.admin.put(AdminOpcode.DELETE_SUBMISSION_QUEUE, dwords=(1,))
        driver.admin.ring()
        assert driver.csts == 1
        assert driver.admin.reap() == []
        gate.open.set()
        assert driver.admin.wait(deletion)[0].status == 0
        assert queues.wait(cid)[0].status == 0


def test_more_commands_than_the_controller_takes_at_once_all_complete(image: Path, gate: Gate) -> None:
    with driving(image=str(image)) as driver:
        queues = driver.create_queues(1, 1024)
        page = driver.allocate(PAGE)
        cids = [queues.put(READ, nsid=1, prp1=page, dwords=(n % 64,)) for n in range(1000)]
        queues.ring()
        gate.open.set()
        assert {done.status for done in queues.wait(*cids)} == {0}


class ShadowDriver:
    """Linux's side of shadow doorbells: store, then ring if that passes the event index."""

    def __init__(self, driver: Driver, queues: Queues) -> None:
        self.driver = driver
        self.queues = queues
        self.doorbells, self.events = driver.allocate(PAGE), driver.allocate(PAGE)
        self.rings = 0
        done = driver.admin.do(AdminOpcode.DOORBELL_BUFFER_CONFIG, prp1=self.doorbells, prp2=self.events)
        assert done.status == 0
        queues.auto_head = False

    def _update(self, at: int, value: int, ring: bool = True) -> None:
        memory = self.driver.memory
        (old,) = struct.unpack_from("<I", memory, self.doorbells + at)
        struct.pack_into("<I", memory, self.doorbells + at, value)
        (event,) = struct.unpack_from("<I", memory, self.events + at)
        if (value - event - 1) & 0xFFFF < (value - old) & 0xFFFF:
            self.rings += 1
            self.driver.machine.write(0x1000 + at, value, 4)

    def submit(self) -> None:
        self._update(8 * self.queues.qid, self.queues.tail)

    def wait(self, *cids: int) -> None:
        for done in self.queues.wait(*cids):
            assert done.status == 0
        self._update(8 * self.queues.qid + 4, self.queues.head)


@pytest.mark.parametrize("size", [4, 64])
@pytest.mark.parametrize("by_event", [True, False])
def test_shadow_doorbells_work_by_event_and_by_message(image: Path, by_event: bool, size: int) -> None:
    with driving(image=str(image), block_size=PAGE, doorbells="shadow") as driver:
        machine = driver.machine
        assert isinstance(machine, ServedMachine)
        with sub_regions(machine.client) as found:
            assert all(isinstance(found[0x1008 + 4 * n], IoEventFd) for n in range(4))
            if by_event:
                machine.bells = {at: sub.fd for at, sub in found.items() if isinstance(sub, IoEventFd)}
            shadow = ShadowDriver(driver, driver.create_queues(1, size))
            page = driver.allocate(PAGE)
            content = image.read_bytes()
            for block in range(200):
                cid = shadow.queues.put(READ, nsid=1, prp1=page, dwords=(block,))
                shadow.submit()
                shadow.wait(cid)
                assert driver.memory[page : page + PAGE] == content[block * PAGE : (block + 1) * PAGE]
            assert shadow.rings <= 600


def test_a_queue_that_is_made_anew_is_rung_for_its_first_command(image: Path) -> None:
    """The event index that an earlier queue of the same number left behind says nothing about this one."""
    with driving(image=str(image)) as driver:
        shadow = ShadowDriver(driver, driver.create_queues(1, 16))
        for _ in range(5):
            cid = shadow.queues.put(IoOpcode.FLUSH, nsid=1)
            shadow.submit()
            shadow.wait(cid)
        for opcode in (AdminOpcode.DELETE_SUBMISSION_QUEUE, AdminOpcode.DELETE_COMPLETION_QUEUE):
            assert driver.admin.do(opcode, dwords=(1,)).status == 0
        driver.memory[shadow.doorbells : shadow.doorbells + 16] = bytes(16)
        shadow.queues, shadow.rings = driver.create_queues(1, 16), 0
        shadow.queues.auto_head = False
        cid = shadow.queues.put(IoOpcode.FLUSH, nsid=1)
        shadow.submit()
        assert shadow.rings == 1
        shadow.wait(cid)


def test_a_ring_by_event_without_shadow_doorbells_does_no_harm(image: Path) -> None:
    with driving(image=str(image), doorbells="shadow") as driver:
        queues = driver.create_queues(1)
        machine = driver.machine
        assert isinstance(machine, ServedMachine)
        with sub_regions(machine.client) as found:
            os.eventfd_write(found[0x1008].fd, 1)
            assert driver.csts == 1
        assert queues.do(IoOpcode.FLUSH, nsid=1).status == 0


def test_transfers_of_every_size_work_without_shared_memory(image: Path) -> None:
    content = image.read_bytes()
    with driving(image=str(image), shared=False) as driver:
        queues = driver.create_queues(1)
        place = driver.allocate(1 << 20)
        for blocks in (1, 9, 2048):
            assert transfer(queues, READ, place, 5, blocks).status == 0
            assert driver.memory[place : place + blocks * 512] == content[5 * 512 : (5 + blocks) * 512]


def test_compare_and_copy_work_without_shared_memory(image: Path) -> None:
    content = image.read_bytes()
    with driving(image=str(image), shared=False) as driver:
        queues = driver.create_queues(1)
        place = driver.allocate(2 * PAGE)
        driver.memory[place : place + 2 * PAGE] = content[: 2 * PAGE]
        assert transfer(queues, IoOpcode.COMPARE, place, 0, 16).status == 0
        assert transfer(queues, IoOpcode.COMPARE, place, 1, 16).code == Status.COMPARE_FAILURE
        struct.pack_into("<8xQH14x", driver.memory, place, 8, 7)
        assert queues.do(IoOpcode.COPY, nsid=1, prp1=place, dwords=(1000,)).status == 0
    assert image.read_bytes()[1000 * 512 : 1008 * 512] == content[8 * 512 : 16 * 512]


def test_a_format_waits_for_a_disk_that_takes_its_time_and_then_empties_it(image: Path, gate: Gate) -> None:
    with driving(image=str(image), block_size=PAGE) as driver:
        queues = driver.create_queues(1)
        page = driver.allocate(PAGE)
        driver.memory[page : page + PAGE] = b"bell" * 1024
        write = queues.put(WRITE, nsid=1, prp1=page, dwords=(5,))
        queues.ring()
        assert gate.waiting.acquire(timeout=PATIENCE)
        form = driver.admin.put(AdminOpcode.FORMAT_NVM, nsid=1, dwords=(1,))
        driver.admin.ring()
        refused = queues.put(READ, nsid=1, prp1=page, dwords=(5,))
        queues.ring()
        assert queues.wait(refused)[0].code == Status.FORMAT_IN_PROGRESS
        assert driver.admin.reap() == []
        gate.open.set()
        assert queues.wait(write)[0].status == 0
        assert driver.admin.wait(form)[0].status == 0
    assert image.read_bytes() == bytes(BLOCKS * PAGE)
