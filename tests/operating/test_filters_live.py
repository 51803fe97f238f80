"""Filters of a running device: in its file, by command, and after its worker has died."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from operating.conftest import Run
from operating.instance import PATIENCE, Instance, connect, eventually, read
from operating.test_captures import begun


def filters(run: Run, name: str) -> list[dict[str, Any]]:
    status, out, err = run("filter", name, "list", "--json")
    assert (status, err) == (0, "")
    found: list[dict[str, Any]] = json.loads(out)
    return found


def test_the_filters_of_a_device_s_file_are_in_it(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "edu"\n[[filter]]\nname = "count"\n[[filter]]\nname = "delay"\nread = "1ms"')
    with connect(daemon.socket(name)) as client:
        identity = read(client, 0)
    count, delay = filters(run, name)
    assert (count["label"], count["report"]["read ident"]) == ("count", 1)
    assert (delay["label"], delay["arguments"]["read"]) == ("delay", "1ms")
    assert identity & 0xFFFF == 0xED


def test_a_wrong_filter_in_a_file_is_refused_with_its_name(daemon: Instance, run: Run) -> None:
    daemon.configure("wrong", 'device = "edu"\n[[filter]]\nname = "delay"\nraed = "1ms"')
    assert "filter delay has no option raed: did you mean read?" in run("check")[2]
    assert "filter delay has no option raed: did you mean read?" in daemon.reload()["failed"]["wrong"]


def test_filters_come_and_go_while_a_client_is_served(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "edu"')
    with connect(daemon.socket(name)) as client:
        read(client, 0)
        assert run("filter", name, "add", "count", "delay:write=1ms") == (0, "", "")
        read(client, 0)
        assert run("filter", name, "add", "count", "--place", "0") == (0, "", "")
        assert [each["label"] for each in filters(run, name)] == ["count-2", "count", "delay"]
        assert filters(run, name)[1]["report"] == {"read ident": 1}
        assert run("filter", name, "remove", "count", "count-2", "delay") == (0, "", "")
        read(client, 0)
        assert filters(run, name) == []


def test_a_command_for_no_filter_says_what_there_is(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "edu"')
    for words, why in (
        (("add", "dealy"), "there is no filter 'dealy': did you mean delay?"),
        (("add", "delay:read"), "filter delay: 'read': expected KEY=VALUE"),
        (("remove", "trace"), f"no filter trace in {name}: it has none"),
    ):
        status, _, err = run("filter", name, *words)
        assert (status, why in err) == (1, True), err


def test_filters_are_put_in_all_or_none(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "edu"\n[[filter]]\nname = "count"')
    status, _, err = run("filter", name, "add", "count", "delay:nope=1", "--place", "0")
    assert (status, "filter delay has no option nope" in err) == (1, True)
    assert [each["label"] for each in filters(run, name)] == ["count"]


@pytest.mark.parametrize("words", [("count", "nope"), ("count", "count")])
def test_none_is_taken_out_if_one_is_not_there(daemon: Instance, run: Run, words: tuple[str, ...]) -> None:
    name = daemon.add('device = "edu"\n[[filter]]\nname = "count"')
    status, _, err = run("filter", name, "remove", *words)
    assert (status, f"no filter {words[1]} in {name}: it has" in err) == (1, True), err
    assert [each["label"] for each in filters(run, name)] == ["count"]


def test_a_device_keeps_its_filters_when_its_worker_dies_until_its_file_has_others(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "edu"\n[[filter]]\nname = "count"')
    assert run("filter", name, "add", "delay:read=1ms") == (0, "", "")
    pid = daemon.pid(name)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: daemon.runs_anew(name, pid))
    assert [(each["label"], each["arguments"].get("read")) for each in filters(run, name)] == [
        ("count", None),
        ("delay", "1ms"),
    ]
    daemon.configure(name, 'device = "edu"\n[[filter]]\nname = "mistakes"')
    daemon.reload()
    assert [each["label"] for each in filters(run, name)] == ["mistakes"]


def test_a_worker_that_follows_has_no_filters_of_commands_that_looked_at_the_one_before(
    daemon: Instance, run: Run, tmp_path: Path
) -> None:
    name = daemon.add('device = "edu"')
    with daemon.control() as stream, begun(daemon, name, tmp_path / "edu.pcapng") as capture:
        stream.send("Trace", more=True, name=name, begin=True)
        assert eventually(lambda: len(filters(run, name)) == 2)
        assert run("filter", name, "add", "count") == (0, "", "")
        pid = daemon.pid(name)
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: daemon.runs_anew(name, pid))
        assert [each["label"] for each in filters(run, name)] == ["count"]
        capture.wait(PATIENCE)


def test_a_filter_that_is_strict_is_for_tests_alone(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "edu"')
    status, _, err = run("filter", name, "add", "mistakes:strict=yes")
    assert (status, "filter mistakes is strict, which is for a test's Guest" in err) == (1, True), err


REPORTS = """
from bellwire import PciDevice
from bellwire.filters import Filter


class Odd(Filter):
    "Has a report that nobody can read."

    def report(self):
        return {"found": object()}


class Long(Filter):
    "Has a report that is too long."

    def report(self):
        return {"found": "x" * (33 << 20)}


class Reports(PciDevice, vendor=0x1234, device=0x0001, class_code=0x088000):
    "A device."
"""


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("odd", "TypeError: Encoding objects of type object is unsupported"),
        ("long", "ValueError: a report of 34,603,020 bytes, expected at most 131,072"),
    ],
)
def test_a_report_that_cannot_be_sent_is_shown_as_an_error(kind: str, why: str, daemon: Instance, run: Run) -> None:
    (daemon.plugins / "reports.py").write_text(REPORTS)
    name = daemon.add('device = "reports"')
    pid = daemon.pid(name)
    assert run("filter", name, "add", kind) == (0, "", "")
    assert [each["report"] for each in filters(run, name)] == [{"error": why}]
    assert daemon.pid(name) == pid
