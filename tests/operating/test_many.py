"""Commands for many devices at once, and for scripts: patterns, --all, --wait, --timeout, JSON for what goes wrong."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bellwired.commands.cli import main
from bellwired.workers import wire
from bellwired.workers.relay import MOST_LINES, Relay
from operating.conftest import Run
from operating.instance import Instance, connect, eventually, read
from vfio_user import VfioUserError

STOPPED = 'device = "probe"\nautostart = false'


@pytest.fixture
def fleet(daemon: Instance) -> list[str]:
    """Two devices of a virtual machine, and one of another."""
    names = ["vm1-disk", "vm1-net", "vm2-disk"]
    for name in names:
        daemon.configure(name)
    daemon.reload()
    return names


def states(daemon: Instance) -> dict[str, str]:
    return {each["name"]: each["state"] for each in daemon.call("List")["devices"]}


def test_list_takes_patterns(fleet: list[str], run: Run) -> None:
    status, out, _ = run("list", "vm1-*", "steady", "--json")
    assert (status, [each["name"] for each in json.loads(out)]) == (0, ["steady", *fleet[:2]])


def test_list_in_json_has_the_client_and_statistics(daemon: Instance, fleet: list[str], run: Run) -> None:
    with connect(daemon.socket("vm1-disk")):
        listed = {each["name"]: each for each in json.loads(run("list", "--json")[1])}
    assert listed["vm1-disk"]["client"]["pid"] > 0
    assert listed["vm1-disk"]["statistics"]["clients"] == 1
    assert listed["vm1-net"]["client"] is None
    assert listed["vm1-net"]["statistics"]["clients"] == 0


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["vm1-disk", "vm2-disk"], ["vm1-disk", "vm2-disk"]),
        (["*-disk"], ["vm1-disk", "vm2-disk"]),
        (["vm1-*", "vm1-net"], ["vm1-disk", "vm1-net"]),
        ([], ["steady", "vm1-disk", "vm1-net", "vm2-disk"]),
    ],
)
def test_status_takes_several_names_patterns_or_none(
    fleet: list[str], run: Run, words: list[str], shown: list[str]
) -> None:
    status, out, _ = run("status", *words)
    assert (status, out.count("State: running")) == (0, len(shown))
    assert [each["name"] for each in json.loads(run("status", *words, "--json")[1])] == shown


def test_status_of_several_is_3_unless_all_of_them_run(daemon: Instance, fleet: list[str], run: Run) -> None:
    daemon.call("Stop", name="vm2-disk")
    assert run("status", "vm1-*")[0] == 0
    assert run("status", "vm1-*", "vm2-disk")[0] == 3


def test_status_shows_the_others_where_one_cannot_be_used(daemon: Instance, fleet: list[str], run: Run) -> None:
    daemon.configure("broken", "device = 1")
    daemon.reload()
    status, out, err = run("status")
    assert (status, out.count("State: running")) == (1, 4)
    assert "broken cannot be used" in err


def test_what_is_done_is_done_to_all_that_match(daemon: Instance, fleet: list[str], run: Run) -> None:
    assert run("stop", "vm1-*") == (0, "", "")
    assert states(daemon) == {"steady": "running", "vm1-disk": "stopped", "vm1-net": "stopped", "vm2-disk": "running"}
    assert run("start", "vm?-disk", "vm1-net") == (0, "", "")
    assert set(states(daemon).values()) == {"running"}


def test_a_pattern_that_matches_nothing_is_an_error(fleet: list[str], run: Run) -> None:
    for command in ("list", "status", "stop"):
        status, out, err = run(command, "vm3-*")
        assert (status, out) == (1, "")
        assert err.startswith("bellwire: no device matches 'vm3-*'\n  there are: steady, vm1-disk")


def test_all_means_every_device_to_which_it_can_be_done(daemon: Instance, fleet: list[str], run: Run) -> None:
    daemon.configure("broken", "device = 1")
    daemon.reload()
    assert run("stop", "--all") == (0, "", "")
    assert set(states(daemon).values()) == {"stopped", "failed"}
    assert run("reset", "--all") == (0, "", "")  # none of them runs
    assert run("disable", "vm2-disk")[0] == 0
    assert run("start", "--all") == (0, "", "")
    assert states(daemon) == {
        "broken": "failed", "steady": "running", "vm1-disk": "running", "vm1-net": "running", "vm2-disk": "disabled",
    }  # fmt: skip


@pytest.mark.parametrize("words", [["stop"], ["stop", "steady", "--all"]])
def test_names_or_all_must_be_given_and_not_both(
    words: list[str], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*words)
    assert "expected names of devices, or --all" in capsys.readouterr().err


def test_disconnect_lets_the_client_go_and_the_next_one_come(daemon: Instance, fleet: list[str], run: Run) -> None:
    with connect(daemon.socket("vm1-disk")) as client, daemon.monitor("vm1-disk") as events:
        assert run("disconnect", "vm1-disk") == (0, "", "")
        left = events.until("left", "vm1-disk")
        assert left["fields"]["text"] == "client left: it was disconnected by hand"
        with pytest.raises(VfioUserError):
            read(client, 0)
        connect(daemon.socket("vm1-disk")).close()
    pid = daemon.pid("vm1-net")
    status, _, err = run("disconnect", "vm1-net")
    assert (status, err) == (1, "bellwire: vm1-net: no client is connected\n")
    assert run("disconnect", "--all") == (0, "", "")
    assert daemon.pid("vm1-net") == pid


def test_an_error_is_json_where_json_is_asked_for(run: Run, daemon: Instance, tmp_path: Path) -> None:
    status, out, err = run("status", "stedy", "--json")
    assert (status, out) == (1, "")
    assert json.loads(err) == {"error": "there is no device 'stedy'", "hint": "did you mean steady?"}
    assert [json.loads(line)["error"] for line in run("stop", "a", "b", "--json")[2].splitlines()] == [
        "there is no device 'a'", "there is no device 'b'",
    ]  # fmt: skip


def test_a_mistake_on_the_command_line_is_json_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bellwire", "status", "--jsn", "--json"])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr()
    assert said.out == ""
    assert json.loads(said.err)["error"] == "unrecognized arguments: --jsn; did you mean --json?"


def test_wait_waits_for_a_daemon_and_its_devices(instance: Instance) -> None:
    instance.configure("late")
    words = [sys.executable, "-m", "bellwired", "status", "late", "--wait", "--timeout", "60", *instance.places]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as waiting, instance:
        shown, _ = waiting.communicate(timeout=60)
        assert (waiting.returncode, "State: running" in shown) == (0, True)


def test_timeout_says_how_long_to_wait_for_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--wait", "--timeout", "0.2", "--runtime-dir", str(tmp_path)]) == 1
    assert f"{tmp_path}/control: no daemon is running there" in capsys.readouterr().err


def test_timeout_says_how_long_to_wait_for_an_answer(daemon: Instance, run: Run) -> None:
    daemon.configure("sleepy", 'device = "probe"\nautostart = false\nrestart = "no"\noptions.mood = "sleeps"')
    daemon.reload()
    status, _, err = run("start", "sleepy", "--timeout", "1")
    assert (status, "the daemon does not answer" in err) == (1, True)
    assert eventually(lambda: daemon.pid("sleepy") > 0)
    os.kill(daemon.pid("sleepy"), signal.SIGKILL)


@pytest.mark.parametrize("words", ["0", "-1", "soon", "nan", "1e9"])
def test_a_timeout_is_seconds(words: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("list", f"--timeout={words}")
    assert "expected seconds" in capsys.readouterr().err


# -- logs


def test_logs_has_the_devices_words_and_those_about_it(daemon: Instance, run: Run) -> None:
    daemon.configure("talker", 'device = "probe"\noptions.mood = "raises"')
    daemon.reload()
    status, out, _ = run("logs", "talker")
    assert status == 0
    assert re.search("[0-9] Probe.setup failed at .*probe.py:27: PermissionError", out)
    assert "its worker ended with status 1: Probe.setup failed" in out
    lines = [json.loads(line) for line in run("logs", "talker", "--json")[1].splitlines()]
    assert {"time", "level", "text"} == set(lines[0])
    assert "error" in {line["level"] for line in lines}


def test_logs_may_be_the_last_few_lines(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    for _ in range(3):
        daemon.call("Restart", name=name)
    assert len(run("logs", name)[1].splitlines()) == 4
    assert len(run("logs", name, "-n", "2")[1].splitlines()) == 2
    assert run("logs", name, "-n", "0")[1] == ""


def test_logs_follows_what_comes(daemon: Instance) -> None:
    name = daemon.add()
    words = [sys.executable, "-m", "bellwired", "logs", name, "-f", "-n", "1", *daemon.places]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert following.stdout.readline().endswith("accepts clients\n")
        with connect(daemon.socket(name)):
            assert "client connected: process" in following.stdout.readline()
        assert "client left" in following.stdout.readline()
        following.terminate()


def test_logs_of_a_device_that_there_is_not(run: Run) -> None:
    status, _, err = run("logs", "stedy")
    assert (status, err) == (1, "bellwire: there is no device 'stedy'\n  did you mean steady?\n")


def test_a_device_that_logs_all_the_time_is_heard_so_often_a_second_and_no_more() -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        theirs.setblocking(False)
        ours.setblocking(False)
        relay = Relay(theirs)
        for number in range(3 * MOST_LINES):
            relay.emit(line(f"line {number}", at=7.0 + number / 1000))
        relay.emit(line("the last", at=8.0))
        texts = []
        with contextlib.suppress(BlockingIOError):
            while received := wire.receive(ours):
                report, _ = received
                assert isinstance(report, wire.Report)
                texts.append(report.fields["text"])
    assert texts[:-1] == [f"line {number}" for number in range(MOST_LINES)]
    assert texts[-1] == f"({2 * MOST_LINES} lines before this one were too many) the last"


def line(text: str, at: float) -> logging.LogRecord:
    record = logging.makeLogRecord({"msg": text, "levelname": "INFO"})
    record.created = at
    return record
