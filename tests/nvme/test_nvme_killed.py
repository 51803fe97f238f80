"""A controller that is killed at any step: the host sees no more than a pause, and each command completes once."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.identify import CONTROLLER_ID
from bellwire.testing import Guest
from killing import Remains, killed, remains, succeed
from nvme.driver import Driver, TestMachine

pytestmark = pytest.mark.slow

MEMORY = 1 << 19
BLOCKS = 64
DATA = 0x60000


class Host:
    """A host with one controller after the other in front of it. It checks each completion."""

    def __init__(self, image: Path) -> None:
        self.options: dict[str, Any] = {"image": str(image), "queues": 4}
        self.guest: Guest[Any] = Guest(Nvme, memory=MEMORY, **self.options)
        self.driver = Driver(TestMachine(self.guest))

    def through_a_kill(self, step: int, action: Callable[[], object]) -> bool:
        """Do ``action``, with a kill at ``step``; whether it came to that."""
        left = killed(self.guest, step, action, lambda code: "/bundled/nvme/" in code.co_filename)
        if left is not None:
            self.go_on(left)
        return left is not None

    def go_on(self, left: Remains) -> None:
        """Have a successor."""
        self.guest.close()
        self.guest = succeed(left, Nvme, **self.options)
        self.driver.machine = TestMachine(self.guest)
        self.driver.memory = self.guest.memory

    def end(self) -> None:
        assert not self.driver.csts & 0x2, "the controller has failed"
        self.guest.close()


def write_and_read(host: Host, rounds: int = 6) -> dict[int, tuple[int, int]]:
    """Put writes and reads into queue 1. Returns what each is about, by its command id."""
    queues, about = host.driver.io[1], {}
    for block in range(rounds):
        page = DATA + 0x1000 * block
        host.driver.memory[page : page + 512] = bytes([block + 1]) * 512
        about[queues.put(IoOpcode.WRITE, nsid=1, prp1=page, dwords=(block,))] = block, 0
        into = DATA + 0x1000 * (block + rounds)
        about[queues.put(IoOpcode.READ, nsid=1, prp1=into, dwords=(32 + block,))] = block, into
    return about


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(struct.pack("<I", block) * 128 for block in range(BLOCKS)))
    return path


@pytest.mark.parametrize("step", range(0, 900, 45))
@pytest.mark.parametrize("lap", [0, 1])
def test_each_command_completes_once_wherever_the_controller_is_killed(image: Path, step: int, lap: int) -> None:
    host = Host(image)
    driver = host.driver
    driver.enable()
    queues = driver.create_queues(1, 16)
    for _ in range(lap):  # so that the rings have wrapped
        queues.do(IoOpcode.FLUSH, nsid=1)
        for _ in range(11):
            queues.do(IoOpcode.READ, nsid=1, prp1=DATA, dwords=(0,))
    about = write_and_read(host)

    def work() -> None:
        queues.ring()
        host.guest.advance(0.01)

    host.through_a_kill(step, work)
    queues.ring()  # a doorbell that may not have been heard is rung again
    host.guest.advance(0.01)
    completed = [(done.cid, done.status) for done in queues.reap()]
    assert sorted(completed) == sorted((cid, 0) for cid in about), "a command is lost, or completed twice"
    for block, into in about.values():
        if into:
            assert bytes(driver.memory[into : into + 512]) == struct.pack("<I", 32 + block) * 128
    content = image.read_bytes()
    assert all(content[512 * block] == block + 1 for block, into in about.values() if not into)
    assert queues.do(IoOpcode.FLUSH, nsid=1).status == 0
    host.end()


@pytest.mark.parametrize("step", range(0, 160, 8))
def test_a_controller_that_is_being_enabled_becomes_ready(image: Path, step: int) -> None:
    host = Host(image)
    host.through_a_kill(step, host.driver.enable)
    host.driver.wait_for(0x3, 0x1)
    assert host.driver.identify(1)
    host.end()


@pytest.mark.parametrize("step", range(0, 200, 10))
def test_a_controller_that_is_being_disabled_stops(image: Path, step: int) -> None:
    host = Host(image)
    host.driver.enable()
    host.through_a_kill(step, host.driver.disable)
    if host.guest.device.cc & 1:
        host.driver.disable()  # the write had not been stored
    host.driver.wait_for(0x1, 0)
    host.driver.admin = type(host.driver.admin)(host.driver, 0, 32)
    host.driver.enable()
    host.end()


@pytest.mark.parametrize("step", range(0, 150, 6))
def test_queues_are_created_once(image: Path, step: int) -> None:
    host = Host(image)
    driver = host.driver
    driver.enable()
    admin = driver.admin
    base, other = driver.allocate(4096), driver.allocate(4096)
    cids = [
        admin.put(AdminOpcode.CREATE_COMPLETION_QUEUE, prp1=base, dwords=(15 << 16 | 1, 1 << 16 | 3)),
        admin.put(AdminOpcode.CREATE_SUBMISSION_QUEUE, prp1=other, dwords=(15 << 16 | 1, 1 << 16 | 1)),
        admin.put(AdminOpcode.ASYNC_EVENT_REQUEST),
        admin.put(AdminOpcode.DELETE_SUBMISSION_QUEUE, dwords=(1,)),
    ]
    host.through_a_kill(step, admin.ring)
    admin.ring()
    host.guest.advance(0.01)
    assert sorted((done.cid, done.status) for done in admin.reap()) == [(cids[n], 0) for n in (0, 1, 3)]
    assert list(host.guest.device.controller.events._state.cids)[:2] == [cids[2], 0]
    host.end()


def test_a_flush_fails_in_a_successor_if_one_has_failed_before(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(image)
    host.driver.enable()
    queues = host.driver.create_queues(1, 16)
    with monkeypatch.context() as failing:
        failing.setattr(os, "fdatasync", broken)
        assert queues.do(IoOpcode.FLUSH, nsid=1).status
    host.go_on(remains(host.guest))
    assert queues.do(IoOpcode.FLUSH, nsid=1).status
    host.end()


def broken(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_namespaces_of_memory_outlive_their_process_with_their_formats_and_names() -> None:
    with Guest(Nvme, memory=MEMORY, size=1 << 16, namespaces=2, capacity=1 << 16) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        driver.memory[DATA : DATA + 48] = struct.pack("<QQ32x", 8, 8)
        driver.memory[DATA + 26] = 1
        assert driver.admin.do(AdminOpcode.NAMESPACE_MANAGEMENT, prp1=DATA).result == 3
        driver.memory[DATA : DATA + 4] = struct.pack("<HH", 1, CONTROLLER_ID)
        assert not driver.admin.do(AdminOpcode.NAMESPACE_ATTACHMENT, nsid=3, prp1=DATA).status
        before = [driver.identify(0, nsid) for nsid in (1, 2, 3)] + [driver.identify(1)]
        for nsid, disk in enumerate(guest.device.controller.namespaces.disks, 1):
            disk.write([bytearray([nsid] * 9)], 500)
        left = remains(guest)
    with succeed(left, Nvme, size=1 << 16, namespaces=2, capacity=1 << 16) as after:
        driver.machine, driver.memory = TestMachine(after), after.memory
        assert [driver.identify(0, nsid) for nsid in (1, 2, 3)] + [driver.identify(1)] == before
        for nsid, disk in enumerate(after.device.controller.namespaces.disks, 1):
            found = bytearray(11)
            disk.read([found], 499)
            assert found == b"\0" + bytes([nsid] * 9) + b"\0"


def test_a_deleted_namespace_is_kept_no_longer() -> None:
    with Guest(Nvme, memory=MEMORY, size=1 << 16, capacity=1 << 16) as guest:
        driver = Driver(TestMachine(guest))
        driver.enable()
        driver.memory[DATA : DATA + 48] = struct.pack("<QQ32x", 8, 8)
        assert driver.admin.do(AdminOpcode.NAMESPACE_MANAGEMENT, prp1=DATA).result == 2
        assert set(guest.kept) == {"namespace 1", "namespace 2", "nvme record"}
        assert not driver.admin.do(AdminOpcode.NAMESPACE_MANAGEMENT, nsid=2, dwords=(1,)).status
        assert set(guest.kept) == {"namespace 1", "nvme record"}


def test_a_namespace_of_memory_that_was_not_kept_is_lost_with_its_process_and_the_host_is_told() -> None:
    with Guest(Nvme, memory=MEMORY, size=1 << 16) as guest:
        Driver(TestMachine(guest)).enable()
        guest.drop_file("namespace 1")
        left = remains(guest)
    with succeed(left, Nvme, size=1 << 16) as after:
        assert Driver(TestMachine(after)).csts & 0x2
