"""A user's daemon in a control group that is delegated to it as systemd does that, on a kernel with all controllers."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from operating import as_user
from operating.instance import PLUGINS, Instance, connect, eventually, over, read, write
from vfio_user import VfioUserError

ROOT = Path("/sys/fs/cgroup")
DAEMON = ROOT / "bellwired"
ENTER = 'echo 0 >"$0/cgroup.procs"; exec "$@"'
GLUTTON = 'device = "glutton"\nrestart = "no"\n'
EAT, MULTIPLY, SPIN, CHILDREN, USED = 0x00, 0x04, 0x08, 0x0C, 0x10  # registers of plugins/glutton.py


@pytest.fixture(scope="module")
def daemon() -> Iterator[Instance]:
    subprocess.run(["mount", "-t", "cgroup2", "none", ROOT], check=True)
    (ROOT / "cgroup.subtree_control").write_text("+memory +cpu +pids")
    DAEMON.mkdir()
    os.setxattr(DAEMON, "user.delegate", b"1")
    for name in (".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
        os.chown(DAEMON / name, as_user.USER, as_user.USER)
    folder = Path(tempfile.mkdtemp(prefix="bellwire-"))
    folder.chmod(0o755)
    instance = Instance(folder)
    shutil.copyfile(PLUGINS / "glutton.py", instance.plugins / "glutton.py")
    instance.configure("neighbour", 'device = "glutton"\n')
    instance.prefix = ["sh", "-c", ENTER, str(DAEMON), *as_user.command()]
    as_user.give(folder)
    with instance:
        assert eventually(lambda: instance.describe("neighbour")["state"] == "running")  # the bed is slow at first
        yield instance
    assert [path.name for path in DAEMON.glob("*/")] == ["manager"]


def add(daemon: Instance, name: str, more: str) -> Path:
    """Start a device; its control group."""
    daemon.configure(name, GLUTTON + more)
    os.chown(daemon.devices / f"{name}.toml", as_user.USER, as_user.USER)
    assert daemon.reload()["failed"] == {}
    return DAEMON / f"device-{name}"


def parts(daemon: Instance, name: str) -> dict[str, str]:
    return {part["name"]: part["state"] for part in daemon.describe(name)["box"]}


def test_each_worker_is_in_a_group_of_its_own(daemon: Instance) -> None:
    group = add(daemon, "alone", 'memory-max = "64M"\ncpu-quota = "150%"\ntasks-max = 9\n')
    assert (group / "cgroup.procs").read_text().split() == [str(daemon.pid("alone"))]
    manager = (DAEMON / "manager/cgroup.procs").read_text().split()
    assert sorted(map(int, manager)) == sorted([daemon.process.pid, daemon.fork_server])
    files = ("memory.max", "memory.oom.group", "cpu.max", "pids.max")
    assert [(group / file).read_text().strip() for file in files] == [str(64 << 20), "1", "150000 100000", "9"]
    limits = ("control group", "memory-max", "cpu-quota", "tasks-max")
    assert [parts(daemon, "alone")[name] for name in limits] == ["here"] * 4


def test_a_device_that_eats_more_than_its_memory_ends_alone_and_the_error_says_why(daemon: Instance) -> None:
    add(daemon, "hungry", 'memory-max = "64M"\n')
    pid, other = daemon.pid("hungry"), daemon.pid("neighbour")
    with connect(daemon.socket("hungry")) as client, pytest.raises((VfioUserError, OSError)):
        write(client, EAT, 256)
    assert over(pid)
    daemon.said("hungry: its worker was killed: it used more than memory-max = 64M")
    assert "its worker was killed: it used more than memory-max = 64M" in daemon.describe("hungry")["error"]
    assert daemon.pid("neighbour") == other > 0
    with connect(daemon.socket("neighbour")) as client:
        write(client, EAT, 4)


def test_a_fork_bomb_stops_at_the_most_tasks_and_all_of_it_ends_with_the_device(daemon: Instance) -> None:
    group = add(daemon, "bomb", 'tasks-max = 12\nsandbox = ["processes"]\n')
    with connect(daemon.socket("bomb")) as client:
        write(client, MULTIPLY, 64)
        assert read(client, CHILDREN) == 11
    assert (group / "pids.current").read_text().strip() == "12"
    daemon.call("Stop", name="bomb")
    assert eventually(lambda: not group.exists())


def test_a_device_that_spins_gets_its_share_of_a_processor(daemon: Instance) -> None:
    group = add(daemon, "spinner", 'cpu-quota = "20%"\n')
    with connect(daemon.socket("spinner")) as client:
        write(client, SPIN, 2000)
        assert 200 <= read(client, USED) <= 600
    stat = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    assert int(stat["nr_throttled"]) > 5


def test_the_group_goes_with_the_worker(daemon: Instance) -> None:
    group = add(daemon, "brief", "")
    assert group.exists()
    daemon.call("Stop", name="brief")
    assert eventually(lambda: not group.exists())


def test_a_worker_is_in_its_group_with_landlock_around_it(daemon: Instance) -> None:
    group = add(daemon, "bound", "")
    status = Path(f"/proc/{daemon.pid('bound')}/cgroup").read_text()
    assert status == f"0::/bellwired/{group.name}\n"
    assert parts(daemon, "bound")["files"] == "here"  # Landlock, which denies /sys/fs/cgroup
