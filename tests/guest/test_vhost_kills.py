"""Real back ends are killed again and again under load, without a guest: each request is answered, and once."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vhost_backends
from bellwire.bundled.vhost import Vhost
from bellwire.bundled.virtio_blk.request import HEADER, SECTOR, Type
from bellwire.virtio import Feature, Status
from bellwired.guest.toolbox import Toolbox
from vhost_backends import BackEnd
from virtio.driver import Driver

pytestmark = pytest.mark.guest

KILLS = 8
PATIENCE = 20.0
FUSE_READ = 15
FUSE_IN = struct.Struct("<IIQQIIII")
FUSE_OUT = struct.Struct("<IiQ")
READ_IN = struct.Struct("<QQIIQII")
EBADF = 9
ROOM = 4096


def until(driver: Driver, true: Callable[[], object]) -> None:
    """Let time pass until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        driver.guest.poll(0.01)
        driver.guest.advance(0.1)


@contextlib.contextmanager
def driven(kind: str, back_end: BackEnd, queue: int) -> Iterator[Driver]:
    """A driver of a device in the hands of ``back_end``, ready to use its queue."""
    with Driver(Vhost, type=kind, backend=f"unix:{back_end.socket}") as driver:
        assert driver.negotiate({Feature.EVENT_IDX})
        for index in range(queue + 1):
            driver.add_queue(index, 64)
        driver.status |= Status.DRIVER_OK
        yield driver


def plane_gone(driver: Driver) -> bool:
    assert isinstance(driver.device, Vhost)
    return driver.device.plane.backend is None


def test_virtiofsd_answers_each_request_once_however_often_it_is_killed(tools: Toolbox, tmp_path: Path) -> None:
    socket = tmp_path / "sock"
    with (
        vhost_backends.running(vhost_backends.virtiofsd(tools, tmp_path, socket), socket) as back_end,
        driven("fs", back_end, 1) as driver,
    ):
        queue, asked, answered = driver.queues[1], 0, []
        place = driver._free

        def gather() -> int:
            for used in queue.used():
                length, error, unique = FUSE_OUT.unpack_from(queue.content(used))
                assert (length, error) == (FUSE_OUT.size, -EBADF), "it knows no such file"
                answered.append(unique)
            return len(answered)

        for kill in range(KILLS):
            driver._free = place
            for _ in range(5 + kill):
                asked += 1
                read = READ_IN.pack(1, 0, ROOM, 0, 0, 0, 0)
                queue.interrupt_after(1)
                queue.send(FUSE_IN.pack(FUSE_IN.size + len(read), FUSE_READ, asked, 2, 0, 0, 0, 0) + read, write=ROOM)
            back_end.kill()
            until(driver, lambda: plane_gone(driver))
            back_end.start()
            until(driver, lambda asked=asked: gather() == asked)  # type: ignore[misc]
        assert sorted(answered) == list(range(1, asked + 1))


def test_a_disk_keeps_what_a_killed_storage_daemon_has_acknowledged(tools: Toolbox, tmp_path: Path) -> None:
    socket, image = tmp_path / "sock", tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(1 << 20)
    written: dict[int, bytes] = {}
    with (
        vhost_backends.running(vhost_backends.storage_daemon(tools, image, socket), socket) as back_end,
        driven("blk", back_end, 0) as driver,
    ):
        queue, place = driver.queues[0], driver._free
        assert driver.config(0, 8) == (1 << 20) // SECTOR

        def done(number: int, data: bytes) -> bool:
            for used in queue.used():
                assert queue.whole(used) == b"\0", "the request has succeeded"
                written[number] = data
                return True
            return False

        for number in range(KILLS * 10):
            driver._free = place
            data = os.urandom(SECTOR)
            queue.interrupt_after(1)
            queue.send(HEADER.pack(Type.OUT, 0, number), data, write=1)
            if number % 10 == 5:
                back_end.kill()
                until(driver, lambda: plane_gone(driver))
                back_end.start()
            until(driver, lambda number=number, data=data: done(number, data))  # type: ignore[misc]
    content = image.read_bytes()
    assert len(written) == KILLS * 10
    assert all(content[number * SECTOR :][:SECTOR] == data for number, data in written.items())
