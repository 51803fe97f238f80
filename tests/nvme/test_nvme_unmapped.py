"""Memory that a host takes back while commands are under way: it finds their completions before the reply."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import IoOpcode
from devices.test_fault_points import GAP
from dying import play
from joining import PAGE, Far, facing, far
from nvme.driver import Driver, Queues
from vfio_user import Client

SIZE = 1 << 20


class FarMachine:
    """The driver's way to a guest behind the protocol."""

    def __init__(self, guest: Far) -> None:
        self.guest = guest
        self.memory = guest.memory
        self.step = guest.step

    def read(self, offset: int, size: int) -> int:
        return self.guest.read(0, offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        self.guest.write(0, value, offset=offset, size=size)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(64 * PAGE))
    return path


def started(guest: Far) -> Queues:
    """The queues of a controller, with all memory mapped."""
    guest.map()
    driver = Driver(FarMachine(guest))
    driver.enable()
    queues = driver.create_queues(1)
    queues.auto_head = False
    guest.interrupts()
    return queues


def ring(queues: Queues, blocks: range) -> list[int]:
    """Have these blocks written; the ids of the commands. The device sees them together with the next request."""
    page = queues.driver.allocate(PAGE)
    queues.driver.memory[page : page + PAGE] = b"w" * PAGE
    cids = [queues.put(IoOpcode.WRITE, nsid=1, prp1=page, dwords=(block,)) for block in blocks]
    queues.ring()
    return cids


def ended(queues: Queues) -> list[tuple[int, int]]:
    """The commands that are complete now, and their status."""
    return sorted((done.cid, done.status) for done in queues.reap())


@pytest.mark.parametrize("direct", [False, True])
def test_a_write_that_has_ended_is_complete_before_its_memory_is_unmapped(image: Path, direct: bool) -> None:
    with far(Nvme(image=str(image), block_size=PAGE, direct=direct), SIZE) as guest:
        queues = started(guest)
        cids = ring(queues, range(3))
        guest.unmap()
        assert ended(queues) == [(cid, 0) for cid in cids]
        assert guest.interrupts() >= 1
        guest.map()
        assert queues.do(IoOpcode.FLUSH, nsid=1).status == 0
        assert queues.reaped == {}
    assert image.read_bytes()[: 4 * PAGE] == b"w" * 3 * PAGE + bytes(PAGE)


@pytest.mark.slow
def test_each_write_ends_once_although_the_worker_dies_while_memory_is_taken_back(image: Path) -> None:
    def take_back(client: Client) -> bool:
        with facing(client, SIZE) as guest:
            queues = started(guest)
            cids = ring(queues, range(5))
            guest.unmap()
            return ended(queues) == [(cid, 0) for cid in cids]

    lines = play(take_back, lambda: Nvme(image=str(image), block_size=PAGE)).lines
    for fault in range(lines * 3 // 4, lines, lines // 32):
        image.write_bytes(bytes(8 * PAGE))
        outcome = play(take_back, lambda: Nvme(image=str(image), block_size=PAGE), fault)
        if not outcome.killed.startswith(GAP):
            assert outcome.seen is True, outcome.killed
            assert image.read_bytes() == b"w" * 5 * PAGE + bytes(3 * PAGE), outcome.killed
