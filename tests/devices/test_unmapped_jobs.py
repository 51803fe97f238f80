"""Jobs of pools, when a client takes memory back, leaves, or stops the device: what has ended is told in time."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

import pytest

from bellwire import Bar, Job, MsiX, PciDevice, Pool
from bellwire.serve import backend, migration
from bellwire.testing.joined import joined
from devices.serving import MEMORY_AND_MASTER, PATIENCE
from joining import PAGE, VECTORS, Far, far
from vfio_user import Client, DeviceState, RegionIndex

AWAY = 1 << 32


class Worker(PciDevice, vendor=0x1234, device=0xCAFE, class_code=0x088000):
    """Two pools, which get as many jobs as are written to ``start``. Guest memory has a byte for each that was told."""

    irq = MsiX(VECTORS)
    mmio = Bar(0, size=4096)
    start = mmio.reg(0x00)
    fetch = mmio.reg(0x08, size=8)

    pools: list[Pool]

    def setup(self) -> None:
        self.work: Callable[[], object] = bool
        self.follow = 0
        """Jobs that are begun one after the other, as others end."""
        self.fails = False
        self.told = 0
        self.told_in_a_hook = False
        self.pools = [self.pool(2, self.ended), self.pool(1, self.count)]

    def reset(self) -> None:
        for pool in self.pools:
            pool.settle()

    def close(self) -> None:
        for pool in self.pools:
            pool.close()

    @start.write
    def begin(self, count: int) -> None:
        for pool in self.pools:
            for _ in range(count):
                pool.submit(Job(self.work))

    @fetch.write
    def begin_and_fetch(self, address: int) -> None:
        self.begin(1)
        self.dma.read(address, 4)
        self.told_in_a_hook = self.told > 0

    def ended(self, jobs: list[Job]) -> None:
        if self.fails:
            raise RuntimeError("not told")
        self.count(jobs)
        if self.follow:
            self.follow -= 1
            self.pools[0].submit(Job(self.work))

    def count(self, jobs: list[Job]) -> None:
        self.dma.write(self.told, b"x" * len(jobs))
        self.told += len(jobs)


class Memory(bytearray):
    """Guest memory from address 0 on, by message."""

    meanwhile: Callable[[], object] | None = None
    """Done once, before the device gets what it reads."""

    def read(self, address: int, count: int) -> bytes:
        if self.meanwhile is not None:
            act, self.meanwhile = self.meanwhile, None
            act()
        return bytes(count)

    def write(self, address: int, data: bytes) -> None:
        self[address : address + len(data)] = data


@pytest.fixture
def device() -> Worker:
    return Worker()


def begin(guest: Far, count: int) -> None:
    """The device sees it together with what the client asks for next."""
    guest.map(0, PAGE)
    guest.write(0, count, offset=0, size=4)


def enable(client: Client) -> None:
    client.write(RegionIndex.CONFIG, 4, MEMORY_AND_MASTER.to_bytes(2, "little"))


def test_jobs_that_have_ended_are_told_of_before_memory_is_unmapped(device: Worker) -> None:
    with far(device) as guest:
        begin(guest, 3)
        guest.unmap(0, PAGE)
        assert guest.memory[:8].tobytes() == b"x" * 6 + bytes(2)
        guest.step()
        assert device.told == 6


def test_jobs_that_follow_from_others_are_told_of_too(device: Worker) -> None:
    with far(device) as guest:
        device.follow = 5
        begin(guest, 1)
        guest.unmap(0, PAGE)
        assert guest.memory[:8].tobytes() == b"x" * 7 + b"\0"


def test_work_that_a_device_has_put_off_to_its_next_turn_is_done_before_memory_is_unmapped(device: Worker) -> None:
    with far(device) as guest:
        begin(guest, 0)
        guest.step()
        device.after(0, device.begin, 1)
        later = device.after(60, device.begin, 1)
        guest.unmap(0, PAGE)
        assert guest.memory[:4].tobytes() == b"xx\0\0"
        later.cancel()


def test_jobs_that_follow_without_end_do_not_hold_a_client_up(device: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "FOLLOWING", 0.01)
    with far(device) as guest:
        device.follow = 1 << 40
        begin(guest, 1)
        guest.unmap(0, PAGE)
        assert device.told > 0
        device.follow = 0


def test_a_device_that_fails_when_it_is_told_gets_the_jobs_of_its_other_pool(
    device: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    with far(device) as guest, caplog.at_level(logging.ERROR):
        device.fails = True
        begin(guest, 2)
        guest.unmap(0, PAGE)
        assert guest.memory[:4].tobytes() == b"xx\0\0"
    assert "not told" in caplog.text


def test_jobs_that_have_ended_are_told_of_before_a_client_is_let_go(device: Worker) -> None:
    with far(device) as guest:
        begin(guest, 2)
        guest.step()
        file = os.dup(guest.fd)
    try:
        assert os.pread(file, 5, 0) == b"xxxx\0"
    finally:
        os.close(file)


def test_jobs_that_have_ended_are_told_of_before_a_device_stands_still(
    device: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "SETTLING", 0.0)
    with far(device) as guest:
        device.follow = 5
        begin(guest, 1)
        guest.client.migration.set_state(DeviceState.STOP)
        assert guest.memory[:8].tobytes() == b"x" * 7 + b"\0"


def test_a_device_that_stands_still_is_told_of_nothing(device: Worker) -> None:
    with far(device) as guest:
        guest.map(0, PAGE)
        guest.client.migration.set_state(DeviceState.STOP)
        device.begin(1)
        guest.unmap(0, PAGE)
        assert device.told == 0


def test_jobs_wait_for_a_client_that_shares_no_memory(device: Worker) -> None:
    """It may be deaf to messages while it waits for the reply."""
    memory = Memory(PAGE)
    with joined(device, memory=memory) as client:
        enable(client)
        for address in (0, AWAY):
            client.dma_map(address, PAGE)
        client.write(0, 0, (2).to_bytes(4, "little"), posted=True)
        client.dma_unmap(AWAY, PAGE)
        assert device.told == 0
        client.read(0, 0, 4)
        assert memory[:5] == b"xxxx\0"


def test_jobs_wait_for_a_hook_that_waits_for_its_dma(device: Worker) -> None:
    """Device code is never called while other device code runs."""
    memory = Memory(PAGE)
    fd = os.memfd_create("shared")
    os.ftruncate(fd, PAGE)
    with joined(device, memory=memory) as client:
        enable(client)
        client.dma_map(0, PAGE, fd)
        client.dma_map(AWAY, PAGE)
        memory.meanwhile = lambda: client.dma_unmap(0, PAGE)
        client.write(0, 8, AWAY.to_bytes(8, "little"))
        assert not device.told_in_a_hook
        assert memory.meanwhile is None
    os.close(fd)


def test_jobs_end_and_are_told_of_before_a_guest_turns_bus_mastering_off(device: Worker) -> None:
    with far(device) as guest:
        go_on = threading.Event()
        device.work = lambda: go_on.wait(PATIENCE)
        begin(guest, 1)
        guest.config_write(4, MEMORY_AND_MASTER, 2)
        assert device.told == 0
        releaser = threading.Timer(0.02, go_on.set)
        releaser.start()
        guest.config_write(4, MEMORY_AND_MASTER & ~4, 2)
        assert guest.memory[:3].tobytes() == b"xx\0"
        releaser.join()
