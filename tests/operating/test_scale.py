"""Many devices on one machine: how long until all accept clients, and what each costs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from daemon.commands import children
from operating.instance import Instance, connect

pytestmark = pytest.mark.slow
DEVICES = 200
START, STOP = 60.0, 60.0  # seconds, on a busy machine; it is a few
SHARE = 9 << 20  # bytes, a tenth more than it is


def proportional(pid: int) -> int:
    """A process's PSS in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no Pss line")


def test_two_hundred_devices_start_and_stop_soon_and_are_small(
    instance: Instance, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [instance.configure(f"device{number}", 'device = "bell"') for number in range(DEVICES)]
    begin = time.monotonic()
    with instance:
        ready = time.monotonic() - begin
        for path in paths:
            connect(path).close()
        server = instance.fork_server
        workers = children(server)
        assert len(workers) == DEVICES
        begin = time.monotonic()
        assert len(instance.call("List")["devices"]) == DEVICES
        listed = time.monotonic() - begin
        shares = sorted(map(proportional, workers))
        manager, warm = proportional(instance.process.pid), proportional(server)
        begin = time.monotonic()
        assert instance.stop() == 0
        stopped = time.monotonic() - begin
    assert not [pid for pid in [server, *workers] if Path(f"/proc/{pid}").exists()]
    assert list(instance.runtime.iterdir()) == []
    mean, mib = sum(shares) / DEVICES, 1 << 20
    with capsys.disabled():
        print(
            f"\n{DEVICES} devices on {os.cpu_count()} CPUs: all accept clients after {ready:.1f} s, all stopped after "
            f"{stopped:.1f} s, all listed in {listed:.2f} s\nPSS of a worker {mean / mib:.2f} MiB on average "
            f"({shares[0] / mib:.2f} to {shares[-1] / mib:.2f}), fork server {warm / mib:.1f} MiB, "
            f"manager {manager / mib:.1f} MiB"
        )
    assert ready < START
    assert stopped < STOP
    assert mean < SHARE
