"""Many devices under one bellwired: the time until all can be used, the memory of each, and one device's latency."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.build import program
from bench.processes import PYTHON
from bench.protocol import timed
from bench.samples import Results
from daemon.commands import children
from operating.instance import Instance, connect

PART = "scale"
COUNTS = (1, 10, 100, 200)
BUSY = 4
"""The number of other devices that are rung without a pause while one is measured."""
FOR_EVER = "100000000"


def measure(results: Results, *, rounds: int, count: int, counts: Sequence[int] = COUNTS) -> None:
    """Measure every number of devices."""
    for _ in range(rounds):
        for number in counts:
            with tempfile.TemporaryDirectory() as folder:
                _measure(results, Path(folder), number, count)


def _measure(results: Results, folder: Path, number: int, count: int) -> None:
    instance = Instance(folder, "")
    paths = [instance.configure(f"bell{each}", 'device = "bell"') for each in range(number)]
    name = devices(number)
    begin = time.perf_counter()
    with instance:
        for path in paths:
            connect(path).close()
        results.add(PART, f"{name}: start", PYTHON, "ms", [(time.perf_counter() - begin) * 1000])
        shares = [proportional(pid) / 2**20 for pid in children(instance.fork_server)]
        results.add(PART, f"{name}: memory of each", PYTHON, "MiB", shares)
        _latency(results, f"{name}, the others idle", paths[0], count)
        with ringing(paths[1 : 1 + BUSY]):
            if number > 1:
                _latency(results, f"{name}, {min(BUSY, number - 1)} others rung without end", paths[0], count)


def devices(number: int) -> str:
    """In words."""
    return f"{number} device{'s' if number > 1 else ''}"


def _latency(results: Results, what: str, path: Path, count: int) -> None:
    with plain_connection(path) as sock:
        found = timed(sock, count)
    for operation in ("ring to interrupt", "REGION_READ"):
        results.add(PART, f"{what}: {operation}", PYTHON, "µs", found[operation])


@contextlib.contextmanager
def ringing(paths: Sequence[Path]) -> Iterator[None]:
    """Clients that ring without a pause."""
    clients = []
    try:
        for path in paths:
            with plain_connection(path) as sock:
                command = [str(program("client")), str(sock.fileno()), FOR_EVER]
                clients.append(subprocess.Popen(command, pass_fds=[sock.fileno()], stdout=subprocess.DEVNULL))
        yield
    finally:
        for client in clients:
            client.kill()
            client.wait()


def plain_connection(path: Path) -> socket.socket:
    """For a client that introduces itself."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.connect(str(path))
    return sock


def proportional(pid: int) -> int:
    """A process's share of memory (PSS), bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise OSError(f"process {pid} tells no Pss")
