"""The shipped unit under a real systemd, on a kernel with all controllers of control groups."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import bed

ROOT = Path("/sys/fs/cgroup")
SERVICE = "bellwired.service"
LIMITED = 'device = "bell"\nmemory-max = "64M"\ncpu-quota = "150%"\ntasks-max = 9\n'
FILES = ("memory.max", "memory.oom.group", "cpu.max", "pids.max")


@pytest.fixture(scope="module")
def systemd() -> Iterator[bed.Bed]:
    subprocess.run(["mount", "-t", "cgroup2", "none", ROOT], check=True)
    (ROOT / "cgroup.subtree_control").write_text("+memory +cpu +pids")
    with bed.booted() as booted:
        booted.install()
        booted.unit(f"{SERVICE}.d/slow.conf", "[Service]\nTimeoutStartSec=200\nWatchdogSec=0\n")
        booted.path("/etc/bellwire/devices.d/bell.toml").write_text(LIMITED)
        try:
            slow(booted, "systemctl", "start", SERVICE)
        except BaseException:
            print("\n".join(str(entry["MESSAGE"]) for entry in booted.journal()[-60:]))
            raise
        yield booted


def slow(systemd: bed.Bed, *words: str) -> str:
    """What a command prints, which takes its time in an emulated machine."""
    return systemd.run(*words, timeout=150.0).stdout


def test_the_unit_has_a_group_for_each_device(systemd: bed.Bed) -> None:
    slow(systemd, "bellwire", "restart", "bell")
    group = f"/sys/fs/cgroup/system.slice/{SERVICE}"
    device = f"{group}/device-bell"
    limits = systemd.run("cat", *(f"{device}/{file}" for file in FILES)).stdout.splitlines()
    assert limits == [str(64 << 20), "1", "150000 100000", "9"]
    assert len(systemd.run("cat", f"{device}/cgroup.procs").stdout.split()) == 1
    assert systemd.run("cat", f"{group}/cgroup.procs").stdout == ""
    assert len(systemd.run("cat", f"{group}/manager/cgroup.procs").stdout.split()) == 2
    said = slow(systemd, "bellwire", "sandbox", "bell")
    assert "(memory.max)" in said
    assert "(cpu.max)" in said
    assert "(pids.max)" in said


def test_it_reloads_and_is_started_again_after_a_crash(systemd: bed.Bed) -> None:
    slow(systemd, "systemctl", "reload", SERVICE)
    main = systemd.show(SERVICE, "MainPID")
    slow(systemd, "systemctl", "restart", SERVICE)
    assert systemd.show(SERVICE, "MainPID") not in (main, "0")
    main = systemd.show(SERVICE, "MainPID")
    slow(systemd, "systemctl", "kill", "--kill-whom=main", "--signal=KILL", SERVICE)
    systemd.heard(MESSAGE=f"{SERVICE}: Scheduled restart job, restart counter is at 1.")
    slow(systemd, "systemctl", "start", SERVICE)
    assert systemd.show(SERVICE, "MainPID") not in (main, "0")
    slow(systemd, "bellwire", "restart", "bell")
    assert "(memory.max)" in slow(systemd, "bellwire", "sandbox", "bell")


def test_its_groups_go_with_it(systemd: bed.Bed) -> None:
    systemd.stop(SERVICE)
    assert systemd.run("test", "-e", f"/sys/fs/cgroup/system.slice/{SERVICE}", check=False).returncode == 1
