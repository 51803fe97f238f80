"""A network card whose rings a client unmaps and maps again: packets of the meantime are neither lost nor doubled."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire.bundled.virtio_net import VirtioNet
from devices.serving import PATIENCE
from joining import Far, far
from virtio.card import PLAIN
from virtio.conftest import KINDS
from virtio.driver import READY, Driver
from virtio.rings import Queue
from virtio.test_virtio_blk_unmapped import FarDriver

pytestmark = pytest.mark.slow

MAC = b"\x02\0\0\0\0\x01"
FRAMES = [b"\xff" * 6 + MAC + b"\x08\0" + bytes([number]) * 50 for number in range(4)]


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        far.bind(str(tmp_path / "far"))
        far.settimeout(PATIENCE)
        yield far


@contextlib.contextmanager
def card(tmp_path: Path, ring: set[int]) -> Iterator[tuple[Far, Driver]]:
    """A card with room for packets, which has sent one: it has used both rings."""
    device = VirtioNet(local=tmp_path / "near", dgram=tmp_path / "far", mac=MAC.hex(":"))
    with far(device) as guest:
        guest.map()
        driver = FarDriver(guest)
        driver.start(ring, range(3))
        for _ in range(8):
            driver.queues[0].add(write=300)
        driver.queues[0].kick()
        driver.queues[1].send(PLAIN + FRAMES[0])
        guest.step()
        yield guest, driver


def packets(guest: Far, queue: Queue, count: int) -> list[bytes]:
    """The next ``count`` that come in."""
    found: list[bytes] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < count:
        assert time.monotonic() < deadline
        guest.step()
        found += [answer[len(PLAIN) :] for answer in queue.answers()]
    return found


@pytest.mark.parametrize("ring", [KINDS["split"], KINDS["packed"]], ids=["split", "packed"])
def test_packets_that_come_while_the_rings_are_not_mapped_are_received_later(
    tmp_path: Path, wire: socket.socket, ring: set[int]
) -> None:
    with card(tmp_path, ring) as (guest, driver):
        assert wire.recv(4096) == FRAMES[0]
        wire.sendto(FRAMES[0], str(tmp_path / "near"))
        assert packets(guest, driver.queues[0], 1) == FRAMES[:1]
        guest.unmap()
        for frame in FRAMES[1:]:
            wire.sendto(frame, str(tmp_path / "near"))
            guest.step()
        guest.map()
        assert packets(guest, driver.queues[0], 3) == FRAMES[1:]
        assert guest.read(0, 0x14, 1) == READY


@pytest.mark.parametrize("ring", [KINDS["split"], KINDS["packed"]], ids=["split", "packed"])
def test_packets_that_are_to_be_sent_while_the_rings_are_not_mapped_are_sent_later(
    tmp_path: Path, wire: socket.socket, ring: set[int]
) -> None:
    with card(tmp_path, ring) as (guest, driver):
        assert wire.recv(4096) == FRAMES[0]
        queue = driver.queues[1]
        for frame in FRAMES[1:]:
            queue.add(PLAIN + frame)
        guest.unmap()
        queue.kick()
        guest.step()
        guest.map()
        guest.step()
        assert [wire.recv(4096) for _ in range(3)] == FRAMES[1:]
        assert len(queue.used()) == 4
        assert guest.read(0, 0x14, 1) == READY
