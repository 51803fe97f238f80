"""Rings, interrupts and resets in a capture, and the timeline that Perfetto reads, of a device with a client."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwire.capture.events import EVENT, MECHANISMS, OUTCOMES, RESET
from bellwire.capture.files import SMALLEST
from bellwire.capture.timeline import TRACKS, DmaTimeline, Timeline
from bellwire.errors import GuestError
from bellwire.serve.worker import Worker
from bellwire.testing import Guest
from bellwired.errors import CommandError
from bellwired.workers.captures import MOST_CAPTURES, PCAPNG, TIMELINE, Captures
from capture.reading import packets
from devices.serving import Probe, read, running, sub_regions, wait_until, write
from vfio_user import Client, RegionIndex


class Captured:
    """A client of a device whose captures the test begins and ends."""

    def __init__(self, worker: Worker, client: Client, folder: Path) -> None:
        self.worker = worker
        self.client = client
        self._folder = folder
        self._captures = Captures(worker.served, "probe")

    def begin(self, form: str) -> Path:
        path = self._folder / form
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        self._do(lambda: self._captures.start([fd], form=form, limit="1000000"))
        return path

    def end(self) -> None:
        self._do(self._captures.close)

    def _do(self, work: Any) -> None:
        done: list[bool] = []
        self.worker.loop.hand_over(lambda: done.append(bool(work() or True)))
        wait_until(lambda: bool(done))


@pytest.fixture
def captured(tmp_path: Path) -> Iterator[Captured]:
    ours, theirs = socket.socketpair()
    worker = Worker(Probe(), connection=theirs)
    with running(worker), Client(ours) as client:
        client.write(RegionIndex.CONFIG, 4, b"\6\0")
        yield Captured(worker, client, tmp_path)


def events(path: Path) -> list[tuple[Any, ...]]:
    """The events of a capture: kind, name, count or vector, value, detail."""
    found = []
    for each in packets(path)[1:]:
        if each.interface == 1:
            kind, _, _, count, _, value, detail, length, _ = EVENT.unpack_from(each.data)
            found.append((kind, each.data[EVENT.size : EVENT.size + length].decode(), count, value, detail))
    return found


def test_rings_are_events_with_their_mechanism_count_and_value(captured: Captured) -> None:
    path = captured.begin(PCAPNG)
    with sub_regions(captured.client) as subs:
        os.eventfd_write(subs[0x30].fd, 3)
        read(captured.client, 0)
    write(captured.client, 0x34, 7)
    captured.end()
    rings = [(3, "bell", 3, 0, "ioeventfd"), (4, "value_bell", 1, 7, "message")]
    assert [(*event[:4], MECHANISMS[event[4]]) for event in events(path)] == rings


def test_interrupts_are_events_with_what_became_of_them(captured: Captured) -> None:
    path = captured.begin(PCAPNG)
    write(captured.client, 0x44, 2)
    write(captured.client, 0x40, 1)
    captured.client.reset()
    captured.end()
    found = [(*event[:4], OUTCOMES[event[4]]) for event in events(path)]
    assert found == [(5, "MSIX", 2, 0, "pending"), (5, "INTX", 0, 1, "sent"), (RESET, "", 0, 0, "lost")]


def test_a_device_without_captures_has_no_filter(captured: Captured) -> None:
    captured.begin(PCAPNG)
    captured.begin(TIMELINE)
    assert len(captured.worker.served.filters) == 2
    captured.end()
    assert len(captured.worker.served.filters) == 0


def test_more_captures_than_the_limit_are_refused(captured: Captured, tmp_path: Path) -> None:
    captures = Captures(captured.worker.served, "probe")
    for number in range(MOST_CAPTURES + 1):
        fd = os.open(tmp_path / str(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        if number < MOST_CAPTURES:
            captures.start([fd], form=TIMELINE, limit="100000")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CommandError, match="captures run already"):
        captures.start([fd], form=TIMELINE, limit="100000")
    assert len(os.listdir("/proc/self/fd")) == before - 1
    captures.close()


# -- the timeline


def strict(text: str) -> list[dict[str, Any]]:
    """The events of a file in the Trace Event Format; an AssertionError for what a reader could not use."""
    found: list[dict[str, Any]] = json.loads(text)
    stacks: dict[tuple[int, int], list[str]] = {}
    for each in sorted(found, key=lambda each: each.get("ts", 0.0)):
        assert isinstance(each["name"], str)
        assert isinstance(each["pid"], int)
        assert isinstance(each["args"], dict)
        if each["ph"] == "M":
            assert each["name"] in ("process_name", "thread_name")
            continue
        assert isinstance(each["ts"], float)
        assert each["tid"] in TRACKS.values()
        stack = stacks.setdefault((each["pid"], each["tid"]), [])
        if each["ph"] == "B":
            stack.append(each["name"])
        elif each["ph"] == "E":
            assert stack.pop() == each["name"]
        else:
            assert (each["ph"], each["s"]) == ("i", "t")
    return found


def told(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(each["ph"], each["name"]) for each in found if each["ph"] != "M"]


def test_a_timeline_has_rings_hooks_and_interrupts(captured: Captured) -> None:
    path = captured.begin(TIMELINE)
    write(captured.client, 0x34, 7)
    write(captured.client, 0x44, 2)
    captured.end()
    found = strict(path.read_text())
    assert told(found) == [
        ("i", "value_bell"), ("B", "rang_with"), ("E", "rang_with"),
        ("B", "trigger_vector"), ("i", "MSIX 2"), ("E", "trigger_vector"),
    ]  # fmt: skip
    assert {each["args"]["name"] for each in found if each["ph"] == "M"} == {"Bellwire: probe", *TRACKS}


def test_a_timeline_has_dma_if_it_is_asked_for(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    timeline = DmaTimeline("probe", [fd], SMALLEST)
    with Guest(Probe, filters=[timeline]) as guest:
        guest.write(Probe.store, 0x1000)
        with pytest.raises(GuestError):
            guest.write(Probe.fetch, 1 << 40)
    timeline.files.close()
    found = strict((tmp_path / "a").read_text())
    assert [each["args"] for each in found if each["name"] == "write"] == [{"address": "0x1000", "size": 4}]
    assert [each["args"]["raised"][:10] for each in found if each["ph"] == "E" and each["args"]] == ["GuestError"]


def test_a_timeline_whose_writer_was_killed_lacks_its_end_only(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    timeline = Timeline("probe", [fd], SMALLEST)
    with Guest(Probe, filters=[timeline]) as guest:
        guest.ring(Probe.bell)
        text = (tmp_path / "a").read_text()
        assert ("E", "rang") in told(strict(text + "]"))
    timeline.files.close()
    strict((tmp_path / "a").read_text())


def test_a_timeline_that_takes_turns_begins_anew_with_what_is_open(tmp_path: Path) -> None:
    fds = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC) for name in "ab"]
    timeline = Timeline("probe", fds, SMALLEST)
    with Guest(Probe, filters=[timeline]) as guest:
        while timeline.files.turns < 3:
            guest.write(Probe.trigger, 2)
    timeline.files.close()
    for name in "ab":
        strict((tmp_path / name).read_text())
