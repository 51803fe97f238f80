"""Disks without a VM, beside a bare loop of preadv or pwritev on a file: with page cache, O_DIRECT, or in memory."""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.build import TARGET
from bench.initiator import Disk, plugged
from bench.nvme_disk import NvmeDisk
from bench.processes import cpus, pinned
from bench.samples import Results
from bench.virtio_disk import VirtioDisk

PART, COST = "storage", "storage: CPU time of the device"
NVME, VIRTIO, BARE = "nvme", "virtio-blk", "bare loop"
SIZE = 64 << 20
SMALL, LARGE = 4096, 128 << 10
DRIVERS: dict[str, tuple[type[NvmeDisk | VirtioDisk], tuple[str, ...]]] = {
    NVME: (NvmeDisk, ("block_size=4096", "doorbells=shadow")),
    VIRTIO: (VirtioDisk, ()),
}


class Load(NamedTuple):
    """A load for a disk."""

    length: int
    depth: int
    write: bool
    direct: bool
    memory: bool = False
    """Whether the device has no image. The bare loop has one in any case, in the page cache."""

    @property
    def name(self) -> str:
        """In words."""
        kind = "4 KiB random" if self.length == SMALL else "128 KiB sequential"
        verb, how = "write" if self.write else "read", "O_DIRECT" if self.direct else "page cache"
        return f"{kind} {verb}, depth {self.depth}, {'memory' if self.memory else how}"

    def offsets(self, count: int, seed: int) -> list[int]:
        """Where."""
        if self.length == SMALL:
            chance = random.Random(seed)
            return [chance.randrange(SIZE // SMALL) * SMALL for _ in range(count)]
        return [number * LARGE % SIZE for number in range(count)]


LOADS = [
    Load(length, depth, write, direct)
    for direct in (False, True)
    for write in (False, True)
    for length, depth in ((SMALL, 1), (SMALL, 8), (SMALL, 32), (LARGE, 8))
] + [Load(SMALL, 32, write, False, memory=True) for write in (False, True)]


def measure(results: Results, *, rounds: int, count: int, loads: Sequence[Load] = LOADS) -> None:
    """Measure every load: ``count`` requests from the page cache, and fewer if they wait for the medium."""
    available = cpus()
    driver, device = available[0], available[-1]
    image = TARGET / "disk.img"
    TARGET.mkdir(parents=True, exist_ok=True)
    try:
        image.write_bytes(random.Random(1).randbytes(1 << 20) * (SIZE >> 20))
        os.sync()
        for number in range(rounds):
            for load in loads:
                offsets = load.offsets(_requests(load, count), number)
                settle(image, load)
                for subject in (BARE, *DRIVERS) if number % 2 else (*DRIVERS, BARE):
                    if subject == BARE:
                        with pinned(device):
                            seconds = bare(image, load, offsets)
                    else:
                        seconds, busy = by_device(subject, image, load, offsets, driver, device)
                        results.add(COST, load.name, subject, "µs", [busy / len(offsets) * 1e6])
                    rate = len(offsets) / seconds
                    if load.length == SMALL:
                        results.add(PART, load.name, subject, "/s", [rate])
                    else:
                        results.add(PART, load.name, subject, "MB/s", [rate * LARGE / 1e6])
    finally:
        image.unlink(missing_ok=True)


def _requests(load: Load, count: int) -> int:
    if load.direct or load.write:
        count //= 64 if load.length == LARGE else 8
    return max(load.depth, count)


def settle(image: Path, load: Load) -> None:
    """Flush earlier writes. Unless the load is O_DIRECT, fill the page cache: O_DIRECT has evicted pages from it."""
    with image.open("r+b") as file:
        os.fsync(file)
        if not load.direct:
            while file.read(1 << 20):
                pass


def bare(image: Path, load: Load, offsets: Sequence[int]) -> float:
    """Seconds for so many system calls, one after the other."""
    move: Callable[[int, list[memoryview], int], int] = os.pwritev if load.write else os.preadv
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC | (os.O_DIRECT if load.direct else 0))
    view = memoryview(mmap.mmap(-1, 32 * load.length))
    buffers = [[view[at : at + load.length]] for at in range(0, len(view), load.length)]
    for number, buffer in enumerate(buffers):
        move(fd, buffer, number * load.length)
    begin = time.perf_counter()
    for number, offset in enumerate(offsets):
        move(fd, buffers[number & 31], offset)
    seconds = time.perf_counter() - begin
    os.close(fd)
    return seconds


def by_device(
    subject: str, image: Path, load: Load, offsets: Sequence[int], driver_cpu: int, device_cpu: int
) -> tuple[float, float]:
    """Seconds that the device takes, and the CPU seconds among them."""
    kind, options = DRIVERS[subject]
    if load.memory:
        options = (*options, f"size={SIZE}")
    else:
        options = (*options, f"image={image}", f"direct={'yes' if load.direct else 'no'}")
    with plugged(subject, device_cpu, *options) as (device, clock), pinned(driver_cpu):
        disk: Disk = kind(device, load.length, write=load.write)
        disk.run(offsets[: 4 * load.depth], load.depth)
        before, begin = clock(), time.perf_counter()
        disk.run(offsets, load.depth)
        return time.perf_counter() - begin, clock() - before
