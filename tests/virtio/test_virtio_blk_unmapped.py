"""Memory that a driver takes back while requests are under way: it finds their status before the reply."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_blk.request import Blk
from devices.serving import PATIENCE
from devices.test_fault_points import GAP
from dying import play
from joining import PAGE, Far, facing, far
from vfio_user import Client, RemoteError
from virtio.conftest import KINDS
from virtio.driver import Driver
from virtio.rings import Queue

OUT, FLUSH, SECTOR = 1, 4, 512
SIZE = 1 << 20
STALE = 0xFF


class FarDriver(Driver):
    """A driver of a guest behind the protocol."""

    def __init__(self, guest: Far) -> None:
        self.guest = guest  # type: ignore[assignment]
        self.memory = guest.memory
        self.places = dict(self._find())
        self.multiplier = self.guest.config_read(self.places[2].capability + 16, 4)
        self.queues = {}
        self._free = PAGE


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(64 * SECTOR))
    return path


def started(guest: Far, features: set[int]) -> Queue:
    """The queue of a disk, with all memory mapped."""
    guest.map()
    driver = FarDriver(guest)
    driver.start(features)
    guest.interrupts()
    return driver.queues[0]


def put(queue: Queue, kind: int, sector: int, data: bytes = b"") -> int:
    """Make a request available; the address of its status."""
    *_, status = queue.add(struct.pack("<IIQ", kind, 0, sector), *([data] if data else []), write=1)
    queue.memory[status.address] = STALE
    return status.address


def answer(guest: Far, queue: Queue) -> bytes:
    """The answer to the one request that is under way."""
    deadline = time.monotonic() + PATIENCE
    while not (answers := queue.answers()):
        assert time.monotonic() < deadline
        guest.step()
    assert len(answers) == 1
    return answers[0]


def flush(guest: Far, queue: Queue) -> None:
    """Have a request done that needs no data."""
    put(queue, FLUSH, 0)
    queue.kick()
    assert answer(guest, queue) == b"\0"


@pytest.mark.parametrize(("features", "direct"), [({Blk.FLUSH}, False), (set(), True)], ids=["cached", "direct"])
@pytest.mark.parametrize("ring", [KINDS["split"], KINDS["packed"]], ids=["split", "packed"])
def test_a_write_that_has_ended_has_its_status_before_its_memory_is_unmapped(
    image: Path, ring: set[int], features: set[int], direct: bool
) -> None:
    with far(VirtioBlk(image=image, direct=direct), SIZE) as guest:
        queue = started(guest, ring | features)
        places = [put(queue, OUT, sector, b"w" * SECTOR) for sector in range(3)]
        queue.kick()
        guest.unmap()
        assert [guest.memory[place] for place in places] == [0, 0, 0]
        assert queue.answers() == [b"\0"] * 3
        assert guest.interrupts() >= 1
        guest.map()
        flush(guest, queue)
    assert image.read_bytes()[: 4 * SECTOR] == b"w" * 3 * SECTOR + bytes(SECTOR)


@pytest.mark.parametrize("ring", [KINDS["split"], KINDS["packed"]], ids=["split", "packed"])
def test_a_ring_that_is_rung_while_it_is_not_mapped_is_looked_at_when_it_is_mapped_again(
    image: Path, ring: set[int]
) -> None:
    with far(VirtioBlk(image=image), SIZE) as guest:
        queue = started(guest, ring | {Blk.FLUSH})
        for sector in range(2):
            flush(guest, queue)
            place = put(queue, OUT, sector, b"w" * SECTOR)
            guest.unmap()
            queue.kick()
            guest.step()
            assert (guest.memory[place], queue.answers()) == (STALE, [])
            guest.map()
            assert answer(guest, queue) == b"\0"
    assert image.read_bytes()[: 3 * SECTOR] == b"w" * 2 * SECTOR + bytes(SECTOR)


@pytest.mark.slow
@pytest.mark.parametrize("ring", [KINDS["split"], KINDS["packed"]], ids=["split", "packed"])
def test_each_write_ends_once_although_the_worker_dies_while_memory_is_taken_back(image: Path, ring: set[int]) -> None:
    def take_back(client: Client) -> list[object]:
        with facing(client, SIZE) as guest:
            queue = started(guest, ring | {Blk.FLUSH})
            places = [put(queue, OUT, sector, b"w" * SECTOR) for sector in range(3)]
            queue.kick()
            guest.unmap()
            found = [guest.memory[place] for place in places]
            try:
                guest.map()
            except RemoteError:  # the descriptor was lost with the process
                guest.map()
            places.append(put(queue, OUT, 3, b"w" * SECTOR))
            queue.kick()
            guest.unmap()
            return [*found, guest.memory[places[3]], *map(len, queue.answers())]

    lines = play(take_back, lambda: VirtioBlk(image=image)).lines
    for fault in range(lines * 3 // 5, lines, lines // 40):
        image.write_bytes(bytes(8 * SECTOR))
        outcome = play(take_back, lambda: VirtioBlk(image=image), fault)
        if not outcome.killed.startswith(GAP):
            assert outcome.seen == [0, 0, 0, 0, 1, 1, 1, 1], outcome.killed
            assert image.read_bytes() == b"w" * 4 * SECTOR + bytes(4 * SECTOR), outcome.killed
