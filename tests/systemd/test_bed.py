"""The systemd that the other tests run in: it touches nothing of the host, and leaves nothing on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bed
from bed import Bed
from daemon.commands import gone

pytestmark = pytest.mark.systemd


class Failure(Exception):
    """What goes wrong in a test."""


def test_a_bed_leaves_nothing_behind_when_a_test_fails(systemd: Bed) -> None:
    before = bed.places(os.getpid())
    with pytest.raises(Failure), bed.booted() as booted:  # noqa: PT012
        booted.unit("lasting.service", "[Service]\nExecStart=sleep infinity\nSendSIGKILL=no\nKillSignal=SIGCONT\n")
        booted.start("lasting.service")
        assert len(bed.places(os.getpid())) == len(before) + 2
        handle = os.pidfd_open(booted.init)
        raise Failure
    assert bed.places(os.getpid()) == before
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(handle, 0)
    os.close(handle)


def test_it_sees_no_process_mount_or_network_of_the_host(systemd: Bed) -> None:
    for space in ("pid", "mnt", "net", "uts", "ipc", "cgroup"):
        assert os.readlink(f"/proc/{systemd.init}/ns/{space}") != os.readlink(f"/proc/self/ns/{space}")
    assert systemd.run("cat", "/proc/1/comm").stdout == "systemd\n"


def test_what_it_writes_is_not_on_the_host(systemd: Bed) -> None:
    systemd.run("touch", "/usr/lib/of-the-bed")
    assert systemd.path("/usr/lib/of-the-bed").exists()
    assert not Path("/usr/lib/of-the-bed").exists()


def test_the_kernels_settings_are_read_only(systemd: Bed) -> None:
    refused = systemd.run("sh", "-c", "echo 1 > /proc/sys/vm/swappiness", check=False)
    assert "Read-only file system" in refused.stderr


def test_the_journal_is_read_by_field(systemd: Bed) -> None:
    systemd.run("sh", "-c", r"printf 'MESSAGE=rung\nBELLWIRE_DEVICE=edu\n' | logger --journald")
    assert systemd.heard(BELLWIRE_DEVICE="edu")["MESSAGE"] == "rung"
    assert [entry["MESSAGE"] for entry in systemd.journal(BELLWIRE_DEVICE="edu")] == ["rung"]


def test_a_process_that_is_killed_takes_its_bed_along(systemd: Bed) -> None:
    script = "import bed, signal\nwith bed.booted() as booted: print(booted.init, flush=True); signal.pause()"
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ | path) as other:
        assert other.stdout is not None
        init = int(other.stdout.readline())
        other.kill()
        other.wait()
    assert gone(init)
    with bed.booted():
        assert not bed.places(other.pid)
