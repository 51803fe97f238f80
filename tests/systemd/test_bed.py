"""The systemd that the other tests run in: it touches nothing of the host, and leaves nothing on it."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

import bed
from bed import Bed

pytestmark = pytest.mark.systemd


class Failure(Exception):
    """What goes wrong in a test."""


def leftovers() -> list[Path]:
    """What a bed has outside while it is there."""
    places = (bed.cgroup_root(), Path(tempfile.gettempdir()))
    return [path for place in places for path in place.glob(f"{bed.PREFIX}{os.getpid()}-*")]


def test_a_bed_leaves_nothing_behind_when_a_test_fails(systemd: Bed) -> None:
    before = leftovers()
    with pytest.raises(Failure), bed.booted() as booted:  # noqa: PT012
        booted.unit("lasting.service", "[Service]\nExecStart=sleep infinity\nSendSIGKILL=no\nKillSignal=SIGCONT\n")
        booted.start("lasting.service")
        assert len(leftovers()) == len(before) + 2
        handle = os.pidfd_open(booted.init)
        raise Failure
    assert leftovers() == before
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
