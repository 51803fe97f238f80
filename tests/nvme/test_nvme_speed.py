"""How fast nvme is beside a bare loop of preadv, in one run. The bounds are wide: they catch a mishap."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from bellwire.bundled.nvme.command import IoOpcode
from nvme.driver import PAGE, Driver
from nvme.driving import driving

pytestmark = pytest.mark.slow

BLOCKS = 16 << 10
DEPTH = 32
READS = DEPTH * 300


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(random.Random(1).randbytes(1 << 20) * (BLOCKS * PAGE >> 20))
    return path


def bare(image: Path) -> float:
    """Reads a second, one after the other."""
    chance = random.Random(2)
    offsets = [chance.randrange(BLOCKS) * PAGE for _ in range(READS)]
    buffers = [bytearray(PAGE)]
    fd = os.open(image, os.O_RDONLY)
    start = time.perf_counter()
    for offset in offsets:
        os.preadv(fd, buffers, offset)
    seconds = time.perf_counter() - start
    os.close(fd)
    return READS / seconds


def by_nvme(driver: Driver) -> float:
    """Reads a second at depth 32, through a socket and guest memory."""
    queues = driver.create_queues(1, 2 * DEPTH)
    pages = [driver.allocate(PAGE) for _ in range(DEPTH)]
    chance = random.Random(2)
    start = time.perf_counter()
    for _ in range(READS // DEPTH):
        for cid, page in enumerate(pages):
            queues.put(IoOpcode.READ, nsid=1, prp1=page, dwords=(chance.randrange(BLOCKS),), cid=cid)
        queues.ring()
        queues.wait(*range(DEPTH))
    return READS / (time.perf_counter() - start)


@pytest.mark.parametrize("threads", [False, True], ids=["at-once", "threads"])
def test_4k_random_reads_at_depth_32(image: Path, threads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if threads:
        monkeypatch.setattr("bellwire.storage.disk._NOWAIT", 0)  # nothing can be read without waiting
    with driving(image=str(image), block_size=PAGE) as driver:
        ours = by_nvme(driver)
    loop = bare(image)
    print(f"{ours:,.0f} reads/s, a bare loop {loop:,.0f}: {ours / loop:.3f} of it")
    assert ours > loop / 100
