"""A daemon is killed, and its clients go on: a service manager has stored what they have set up."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwired.workers.parcel import FORMAT
from operating import parcel_samples
from operating.fd_keeper import FdKeeper
from operating.instance import PLAIN, Instance, connect, eventually, over, read, write
from vfio_user import Disconnected

pytestmark = pytest.mark.slow
SAMPLES = sorted((Path(__file__).parent / "samples").glob("parcel-*.json"))
OF_ONE = [f"bellwire{FORMAT}-{what}-dev" for what in ("channel", "entrance", "exit")]
REGION_READ = 9


@pytest.fixture
def keeper(tmp_path: Path, instance: Instance) -> Iterator[FdKeeper]:
    keeper = FdKeeper(tmp_path / "notify")
    instance.environment["NOTIFY_SOCKET"] = str(keeper.path)
    with contextlib.closing(keeper):
        yield keeper


def again(instance: Instance, keeper: FdKeeper) -> None:
    """Start the next daemon, as a service manager does, and wait until it is ready."""
    instance.passed = keeper.passed()
    try:
        instance.start()
    finally:
        for sock in instance.passed.values():
            sock.close()
        instance.passed = {}
    instance.said("ready:")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_next_daemon_goes_on_with_a_client(instance: Instance, keeper: FdKeeper, number: signal.Signals) -> None:
    path = instance.configure("dev")
    with instance, connect(path) as client:
        write(client, PLAIN, 42)
        for turn in (1, 2):
            instance.stop(number)
            again(instance, keeper)
            assert read(client, PLAIN) == 42
            told = instance.describe("dev")
            assert told["hand_overs"]["count"] == turn
            assert told["client"]["pid"] == os.getpid()
        reason = told["hand_overs"]["reason"]
        assert reason == {signal.SIGTERM: "the daemon was restarted", signal.SIGKILL: "the daemon has died"}[number]
        assert keeper.names == OF_ONE


def descriptors(pid: int) -> dict[str, str]:
    folder = f"/proc/{pid}/fd"
    return {name: os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}


def test_a_daemon_for_which_clients_wait_forks_its_fork_server_and_the_next_one_is_started(
    instance: Instance, keeper: FdKeeper
) -> None:
    path = instance.configure("dev")
    instance.program = ["-c", "from bellwired.start_daemon import main; main()"]
    with instance, connect(path) as client:
        commands = [Path(f"/proc/{pid}/cmdline") for pid in (instance.process.pid, instance.fork_server)]
        assert commands[0].read_text() != commands[1].read_text(), "it was started: nobody waited"
        write(client, PLAIN, 42)
        assert instance.stop() == 0
        again(instance, keeper)
        server, worker = instance.fork_server, instance.pid("dev")
        commands = [Path(f"/proc/{pid}/cmdline") for pid in (instance.process.pid, server)]
        assert commands[0].read_text() == commands[1].read_text(), "it was forked"
        assert os.getsid(server) == server
        opened = descriptors(server)
        assert opened.pop("0") == os.devnull
        known = {opened.pop("1"), opened.pop("2")}
        assert sorted(place.partition(":")[0] for place in opened.values() if place not in known) == [
            "anon_inode",
            "socket",
        ], "the worker's pidfd, and its end of the manager's socket"
        os.kill(server, signal.SIGKILL)
        over(worker)
        assert read(client, PLAIN) == 42
        assert instance.fork_server != server


def test_a_client_that_goes_on_is_served_until_all_other_devices_have_stopped(
    instance: Instance, keeper: FdKeeper
) -> None:
    path = instance.configure("dev")
    instance.configure("slow", 'device = "probe"\noptions = { mood = "stubborn" }')
    with instance, connect(path) as client:
        slow = instance.pid("slow")
        instance.process.terminate()
        assert eventually(lambda: instance.describe("slow")["state"] == "stopping")
        write(client, PLAIN, 42)
        assert read(client, PLAIN) == 42
        os.kill(slow, signal.SIGKILL)
        assert instance.stop() == 0
        again(instance, keeper)
        assert read(client, PLAIN) == 42


def test_a_client_that_has_left_leaves_nothing(instance: Instance, keeper: FdKeeper) -> None:
    path = instance.configure("dev")
    with instance:
        client = connect(path)
        instance.stop(signal.SIGKILL)
        client.close()
        again(instance, keeper)
        assert eventually(lambda: instance.describe("dev")["client"] is None)
        assert eventually(lambda: keeper.in_flight(OF_ONE[2]) == 0)
        with connect(path) as fresh:
            assert read(fresh, PLAIN) == 0


def test_a_device_that_is_stopped_leaves_the_store(instance: Instance, keeper: FdKeeper) -> None:
    path = instance.configure("dev")
    with instance, connect(path) as client:
        assert eventually(lambda: keeper.names == OF_ONE)
        instance.call("Stop", name="dev")
        assert eventually(lambda: keeper.names == [])
        with pytest.raises(Disconnected):
            read(client, PLAIN)


def test_a_change_that_no_manager_has_read_is_not_lost(instance: Instance, keeper: FdKeeper) -> None:
    path = instance.configure("dev")
    with instance:
        os.kill(instance.process.pid, signal.SIGSTOP)
        with connect(path) as client:  # the worker answers, and nobody reads what it tells
            write(client, PLAIN, 42)
            os.kill(instance.process.pid, signal.SIGKILL)
            over(instance.process.pid)
            instance.stop(signal.SIGKILL)
            again(instance, keeper)
            assert read(client, PLAIN) == 42


def test_a_device_whose_file_has_gone_lets_its_client_go(instance: Instance, keeper: FdKeeper) -> None:
    path = instance.configure("dev")
    with instance, connect(path) as client:
        instance.stop(signal.SIGKILL)
        instance.remove("dev")
        again(instance, keeper)
        assert "dev has no file any more" in instance.log
        with pytest.raises(Disconnected):
            read(client, PLAIN)
        assert keeper.names == []


def test_a_file_that_is_broken_keeps_its_client_waiting_for_a_better_one(instance: Instance, keeper: FdKeeper) -> None:
    path = instance.configure("dev")
    with instance, connect(path) as client:
        write(client, PLAIN, 42)
        instance.stop(signal.SIGKILL)
        instance.configure("dev", "nonsense")
        again(instance, keeper)
        instance.configure("dev")
        instance.reload()
        assert read(client, PLAIN) == 42


def test_another_format_is_refused_by_its_number_and_stays_stored(instance: Instance, keeper: FdKeeper) -> None:
    path = instance.configure("dev")
    with instance, connect(path) as client:
        write(client, PLAIN, 42)
        instance.stop(signal.SIGKILL)
        own = keeper.passed()
        instance.passed = {name.replace(f"bellwire{FORMAT}", "bellwire99"): sock for name, sock in own.items()}
        instance.start()
        instance.said("ready:")
        assert re.search(r"format 99, and this one knows 1 alone", instance.describe("dev")["error"])
        assert keeper.names == OF_ONE
        instance.stop()
        for sock in own.values():
            sock.close()
        again(instance, keeper)
        assert read(client, PLAIN) == 42


@pytest.mark.parametrize(
    "name", [f"bellwire{FORMAT}-exit-dev", f"bellwire{FORMAT}-channel-dev", f"bellwire{FORMAT}-exit-", "bellwire"]
)
def test_a_forged_name_is_harmless(instance: Instance, name: str) -> None:
    path = instance.configure("dev")
    one, other = socket.socketpair()
    with one, other:
        instance.passed = {name: one}
        with instance, connect(path) as client:
            assert read(client, PLAIN) == 0
            assert instance.describe("dev")["hand_overs"]["count"] == 0


def test_there_is_a_sample_of_each_format() -> None:
    assert [int(re.sub(r"\D", "", path.stem)) for path in SAMPLES] == list(range(1, FORMAT + 1))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_what_each_version_has_left_is_read(instance: Instance, path: Path) -> None:
    """The client of the sample has written 42 to the liveness check of an edu."""
    messages: list[dict[str, Any]] = json.loads(path.read_text())
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    parcel = parcel_samples.unpacked(messages, theirs)
    form = path.stem.partition("-")[2]
    instance.passed = {f"bellwire{form}-exit-dev": parcel.exit, f"bellwire{form}-entrance-dev": parcel.entrance}
    instance.configure("dev", 'device = "edu"')
    with instance, ours, theirs, contextlib.closing(parcel):
        access = struct.pack("<QII", 4, 0, 4)
        ours.sendall(struct.pack("<HHIII", 5, REGION_READ, 16 + len(access), 0, 0) + access)
        reply = ours.recv(1024)
        assert reply[-4:] == (42 ^ 0xFFFFFFFF).to_bytes(4, "little")
        assert instance.describe("dev")["hand_overs"]["count"] == 1
