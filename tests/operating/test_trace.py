"""``bellwire trace``: what happens between a guest and a device that runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from bellwired.workers.tracing import MOST
from operating.conftest import Run
from operating.instance import PATIENCE, PLAIN, Instance, connect, eventually, read, write


@contextlib.contextmanager
def tracing(daemon: Instance, name: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """``bellwire trace``, which has begun."""
    command = [sys.executable, "-m", "bellwired", "trace", *daemon.places, name, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert eventually(lambda: traces(daemon, name))
            yield running
        finally:
            running.kill()


def traces(daemon: Instance, name: str) -> int:
    """How many event rings the device's process has open. A map of one has a descriptor of its own."""
    found = set()
    for each in Path(f"/proc/{daemon.pid(name)}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if "bellwire-events" in os.readlink(each):
                found.add(each.stat().st_ino)
    return len(found)


def line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().rstrip("\n")


def test_it_prints_each_event_decoded(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client, tracing(daemon, name, "--only", "mmio") as command:
        write(client, PLAIN, 0x2A)
        assert read(client, PLAIN) == 0x2A
        assert line(command.stdout)[16:] == "write   plain = 0x0000002a  BAR0+0x0"
        assert line(command.stdout)[16:] == "read    plain = 0x0000002a  BAR0+0x0"


def test_in_json_an_event_is_an_object_on_a_line(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client, tracing(daemon, name, "--only", "plain", "--json") as command:
        write(client, PLAIN, 0)
        event = json.loads(line(command.stdout))
        command.send_signal(signal.SIGINT)
        assert command.communicate(timeout=PATIENCE)[1] == ""
    assert event.pop("time") > 1e9
    assert event == {
        "number": 1, "kind": "write", "name": "plain", "space": "mmio", "where": "BAR0+0x0", "size": 4, "value": 0,
    }  # fmt: skip


def test_it_ends_with_the_device(daemon: Instance) -> None:
    name = daemon.add()
    with tracing(daemon, name, "--only", "reset") as command:
        daemon.call("Stop", name=name)
        out, error = command.communicate(timeout=PATIENCE)
    assert out[16:] == "reset\n"
    assert error == f"tracing {name}; Ctrl-C ends it\n{name} has ended, and its trace with it\n"
    assert command.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_trace_is_taken_out_when_its_reader_goes(daemon: Instance, number: signal.Signals) -> None:
    name = daemon.add()
    with tracing(daemon, name) as command:
        command.send_signal(number)
        command.wait(PATIENCE)
        assert eventually(lambda: not traces(daemon, name))


def test_several_may_look_at_the_same_time_up_to_a_limit(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(daemon.control()) for _ in range(MOST)]
        for number, stream in enumerate(streams, 1):
            stream.send("Trace", more=True, name=name, begin=True)
            assert eventually(lambda number=number: traces(daemon, name) == number)
        status, _, error = run("trace", name)
    assert status == 1
    assert f"{MOST} traces of it run already" in error


def test_a_term_that_can_never_match_is_refused(daemon: Instance, run: Run) -> None:
    status, _, error = run("trace", daemon.add(), "--only", "plian")
    assert status == 1
    assert "did you mean plain?" in error


def test_a_device_without_a_trace_of_its_own_has_no_last_events(daemon: Instance, run: Run) -> None:
    status, _, error = run("trace", daemon.add(), "--last", "5")
    assert status == 1
    assert "it has no filter trace" in error


def test_the_last_events_of_a_worker_outlive_it(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "probe"\n[[filter]]\nname = "trace"\nlog = false\nonly = "mmio"')
    assert run("trace", name, "--last", "5", "--ended")[0] == 1
    pid = daemon.pid(name)
    with connect(daemon.socket(name)) as client:
        write(client, PLAIN, 7)
        assert read(client, PLAIN) == 7
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: daemon.runs_anew(name, pid))
    status, out, _ = run("trace", name, "--last", "1", "--ended")
    assert status == 0
    assert out[16:].rstrip() == "read    plain = 0x00000007  BAR0+0x0"


def test_of_the_last_events_only_some_can_be_printed(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "probe"\n[[filter]]\nname = "trace"\nlog = false\nonly = "mmio"')
    with connect(daemon.socket(name)) as client:
        for value in (1, 2, 3):
            write(client, PLAIN, value)
            read(client, PLAIN)
    status, out, error = run("trace", name, "--last", "2", "--only", "write")
    assert (status, error) == (0, "")
    assert [each[16:].split("  ")[1].strip() for each in out.splitlines()] == [
        "plain = 0x00000002",
        "plain = 0x00000003",
    ]
    assert run("trace", name, "--last", "2", "--not", "mmio") == (0, "", "no such event among the last 6\n")


def test_a_rate_limits_the_events_of_a_second_and_says_that_some_are_missing(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client, tracing(daemon, name, "--rate", "2", "--json") as command:
        end = int(time.time()) + 2
        while time.time() < end:
            read(client, PLAIN)
        command.send_signal(signal.SIGINT)
        out, _ = command.communicate(timeout=PATIENCE)
    kinds = [json.loads(each)["kind"] for each in out.splitlines()]
    assert "lost" in kinds
    assert kinds.count("read") <= 2 * 3, "it ran in three seconds at most"
