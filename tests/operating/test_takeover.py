"""``bellwired --takeover``: a new daemon goes on with the clients of one that runs, which ends then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from operating.instance import PATIENCE, PLAIN, Instance, connect, read, write

pytestmark = pytest.mark.slow


def takes_over(instance: Instance) -> Instance:
    """Another daemon of the same folders, which takes over from ``instance``."""
    other = Instance.__new__(Instance)
    other.__dict__ |= instance.__dict__
    other.renew()
    other.flags = ["--takeover"]
    return other


def test_the_new_daemon_goes_on_with_clients_and_sockets_and_the_old_one_ends(instance: Instance) -> None:
    path, idle = instance.configure("dev"), instance.configure("idle")
    with instance, connect(path) as client:
        write(client, PLAIN, 42)
        for turn in (1, 2):
            inodes = path.stat().st_ino, idle.stat().st_ino
            other = takes_over(instance)
            other.start()
            try:
                other.said("ready:")
                assert instance.process.wait(PATIENCE) == 0
                assert read(client, PLAIN) == 42
                assert (path.stat().st_ino, idle.stat().st_ino) == inodes
                with connect(idle) as late:
                    assert read(late, PLAIN) == 0
                told = other.describe("dev")
                assert told["hand_overs"]["count"] == turn
                assert told["client"]["pid"] == os.getpid()
            finally:
                instance.__exit__(None, None, None)
                instance.__dict__ |= other.__dict__
        instance.stop()
        assert sorted(each.name for each in instance.runtime.iterdir()) == []


def test_a_daemon_that_cannot_serve_all_clients_takes_nothing_over(instance: Instance) -> None:
    path = instance.configure("dev")
    with instance, connect(path) as client:
        write(client, PLAIN, 42)
        instance.configure("dev", 'device = "probe"\noptions.mood = "refuses"')
        other = takes_over(instance)
        other.start()
        assert other.process.wait(PATIENCE) == 1
        assert "not today" in other.said("dev does not go on with its client: ")
        other.__exit__(None, None, None)
        assert read(client, PLAIN) == 42
        assert instance.describe("dev")["hand_overs"]["reason"] == "another daemon has not taken the device over"
        instance.configure("dev")
        instance.call("Restart", name="dev")
        with connect(path) as fresh:
            assert read(fresh, PLAIN) == 0


def test_a_daemon_without_a_usable_file_of_a_device_with_a_client_takes_nothing_over(instance: Instance) -> None:
    path = instance.configure("dev")
    with instance, connect(path) as client:
        write(client, PLAIN, 42)
        instance.configure("dev", "device = 3")
        other = takes_over(instance)
        other.start()
        assert other.process.wait(PATIENCE) == 1
        other.said("there is no usable file for dev, which has a client")
        other.__exit__(None, None, None)
        assert read(client, PLAIN) == 42


def test_a_daemon_that_is_killed_while_it_takes_over_changes_nothing(instance: Instance) -> None:
    path, slow = instance.configure("dev"), instance.configure("slow")
    with instance, connect(path) as client, connect(slow) as other_client:
        write(client, PLAIN, 42)
        instance.configure("slow", 'device = "probe"\noptions.mood = "sleeps"')
        other = takes_over(instance)
        other.start()
        other.said("dev: a new worker has taken over")
        write(client, PLAIN, 43)
        other.stop(signal.SIGKILL)
        assert read(client, PLAIN) == 43
        instance.said("this daemon goes on")
        instance.configure("slow")
        instance.call("Start", name="dev")
        assert read(client, PLAIN) == 43
        del other_client


def test_without_a_daemon_there_is_nothing_to_take_over(instance: Instance) -> None:
    words = [sys.executable, "-m", "bellwired.manager.main", *instance.places, "--takeover"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1
    assert "no daemon to take over from" in done.stderr
    assert "start one without --takeover" in done.stderr
    assert [path.name for path in instance.runtime.iterdir()] == []


def test_a_broken_configuration_is_told_before_anything_changes(instance: Instance, tmp_path: Path) -> None:
    instance.configure("dev")
    with instance:
        words = [sys.executable, "-m", "bellwired.manager.main", "--takeover", "--config-dir", str(tmp_path / "gone")]
        words += ["--runtime-dir", str(instance.runtime)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == os.EX_CONFIG
        assert instance.describe("dev")["state"] == "running"
