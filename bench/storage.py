"""Disks without a VM, beside a bare loop of preadv or pwritev on a file: with page cache, O_DIRECT, or in memory."""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from bench.build import TARGET
from bench.initiator import Disk, Plugged, plugged
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


Ours = Mapping[str, tuple[Plugged, Callable[[], float]]]
"""By subject: a device, and the clock of the CPU time that its process has used."""


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

    @property
    def medium(self) -> str:
        """The option of a device that serves this load."""
        return f"size={SIZE}" if self.memory else f"direct={'yes' if self.direct else 'no'}"

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
    images = {subject: TARGET / f"{subject}.img" for subject in (*DRIVERS, BARE)}  # a device locks its own
    TARGET.mkdir(parents=True, exist_ok=True)
    try:
        for image in images.values():
            image.write_bytes(random.Random(1).randbytes(1 << 20) * (SIZE >> 20))
        os.sync()
        for number in range(rounds):
            for medium, some in groupby(loads, lambda load: load.medium):
                with devices(images, medium, device) as ours:
                    for load in some:
                        for image in images.values():
                            settle(image, load)
                        _measure(results, images[BARE], load, ours, driver, device, number, count)
    finally:
        for image in images.values():
            image.unlink(missing_ok=True)


def _measure(
    results: Results, image: Path, load: Load, ours: Ours, driver: int, device: int, number: int, count: int
) -> None:
    """One round of one load."""
    offsets = load.offsets(_requests(load, count), number)
    for subject in (BARE, *DRIVERS) if number % 2 else (*DRIVERS, BARE):
        if subject == BARE:
            with pinned(device):
                seconds = bare(image, load, offsets)
        else:
            with pinned(driver):
                seconds, busy = by_device(subject, load, offsets, *ours[subject])
            results.add(COST, load.name, subject, "µs", [busy / len(offsets) * 1e6])
        rate = len(offsets) / seconds
        if load.length == SMALL:
            results.add(PART, load.name, subject, "/s", [rate])
        else:
            results.add(PART, load.name, subject, "MB/s", [rate * LARGE / 1e6])


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


@contextmanager
def devices(images: Mapping[str, Path], medium: str, cpu: int) -> Iterator[Ours]:
    """A device of each kind, for all loads of that medium: it takes longer to start one than to measure it."""
    with ExitStack() as stack:
        found = {}
        for subject, (_, options) in DRIVERS.items():
            place = () if medium.startswith("size") else (f"image={images[subject]}",)
            found[subject] = stack.enter_context(plugged(subject, cpu, *options, medium, *place))
        yield found


def by_device(
    subject: str, load: Load, offsets: Sequence[int], device: Plugged, clock: Callable[[], float]
) -> tuple[float, float]:
    """Seconds that the device takes, and the CPU seconds among them."""
    kind, _ = DRIVERS[subject]
    disk: Disk = kind(device, load.length, write=load.write)
    disk.run(offsets[: 4 * load.depth], load.depth)
    before, begin = clock(), time.perf_counter()
    disk.run(offsets, load.depth)
    return time.perf_counter() - begin, clock() - before
