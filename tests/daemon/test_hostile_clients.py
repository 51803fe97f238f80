"""Whatever a client sends to a bundled device, its worker lives, nothing leaks, and the next client is served."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from pathlib import Path

import pytest

from daemon.commands import PATIENCE, children, ended, line, started
from protocol.attack import Attack, Makers, carry_out, descriptors
from vfio_user import Client, Command, RegionIndex

SECONDS = 5
VALUES = [0, 1, 2, 3, 4, 6, 7, 15, 0x100, 0x1000, 0x2000, (1 << 64) - 1]


class DeviceAttack(Attack):
    """With accesses all over the regions that there are."""

    def __init__(self, seed: int, length: int, sizes: dict[int, int]) -> None:
        self._sizes = sizes
        super().__init__(seed, length)

    def _good(self) -> Makers:
        one, upto = self._random.choice, self._random.randrange

        def head(count: int) -> bytes:
            region = one(list(self._sizes))
            size = self._sizes[region]
            offset = one([upto(size), upto(min(size, 256)), upto(min(size, 4096)) & ~7])
            return struct.pack("<QII", offset, region, count)

        def read() -> tuple[int, bytes, list[str]]:
            return Command.REGION_READ, head(one([0, 1, 2, 3, 4, 8, 64])), []

        def write() -> tuple[int, bytes, list[str]]:
            data = one([self._random.randbytes(64), struct.pack("<Q", one(VALUES))])[: one([1, 2, 3, 4, 4, 8, 64])]
            return Command.REGION_WRITE, head(len(data)) + data, []

        return [*super()._good(), *[read] * 4, *[write] * 12]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["bell", "edu", "nvme", "serial", "virtio-console", "virtio-rng"])
def test_a_device_survives_hostile_clients(device: str, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with started("--log-level", "error", "run", device, "--socket-path", path) as process, descriptors() as pool:
        line(process)
        sizes = regions(path)
        pids = [process.pid, *children(process.pid)]  # the parent, and the process that serves
        before = [settled(path, pid) for pid in pids]
        end, seed = time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            seed += 1
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(PATIENCE)
                sock.connect(path)
                carry_out(DeviceAttack(seed, seed % 60, sizes), sock, pool)
                sock.shutdown(socket.SHUT_RDWR)  # a close would not do: the worker may hold this end of it too
        assert [settled(path, pid) for pid in pids] == before
        assert ended(process, signal.SIGTERM) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def regions(path: str) -> dict[int, int]:
    """The sizes of those that there are."""
    sizes = {}
    with Client.connect(path, timeout=PATIENCE) as client:
        for index in RegionIndex:
            info, fd = client.region_info(index)
            if fd is not None:
                os.close(fd)
            if info.size:
                sizes[int(index)] = info.size
    return sizes


def settled(path: str, pid: int) -> int:
    """The number of descriptors when a good client is being served, and the process has nothing to do.

    The parent is told of a client before the client's first reply leaves, and takes what it is told soon after.
    """
    with Client.connect(path, timeout=PATIENCE) as client:
        client.reset()
        assert len(client.read(RegionIndex.CONFIG, 0, 64)) == 64
        deadline = time.monotonic() + PATIENCE
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline
            os.sched_yield()
        return len(os.listdir(f"/proc/{pid}/fd"))
