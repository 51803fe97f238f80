"""The devices of ``bellwire boot``: each in a process of its own, which is waited for and ended."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import pytest

from bellwired.commands.boot_devices import plug
from bellwired.commands.control_client import Instance, all_devices
from bellwired.guest.errors import MachineError
from bellwired.guest.served import Served, Wanted, sockets
from bellwired.places import Places
from daemon.commands import children

pytestmark = pytest.mark.daemon

PATIENCE = 60.0
CARD = """
from bellwire import PciDevice

class One(PciDevice, vendor=0x1234, device=0x0101, class_code=0x088000):
    "Function 0."

class Two(PciDevice, vendor=0x1234, device=0x0102, class_code=0x088000):
    "Function 1."

functions = [One, Two]
"""

SLOW = """
import time
from bellwire import PciDevice
from bellwire.filters import Filter

class Counting(Filter):
    "Takes its time to report what it has found."
    def report(self):
        time.sleep(1)
        return {"end": 1}

class Slow(PciDevice, vendor=0x1234, device=0x0103, class_code=0x088000):
    "A device."
"""


class Log:
    """The lines that the devices have logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, name: str, text: str) -> None:
        self.lines.append((name, text))


def test_devices_serve_until_they_are_ended_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "card.py").write_text(CARD)
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    before = set(children(os.getpid()))
    with Served(Log()) as served:
        paths = {
            name: served.add(Wanted(name, word)) for name, word in (("card", str(tmp_path / "card.py")), ("edu", "edu"))
        }
        served.wait()
        assert [len(sockets(path)) for path in paths.values()] == [2, 1]
        functions = [(each.properties["addr"], "multifunction" in each.properties) for each in plug(paths)]
        assert functions == [("1.0", True), ("1.1", True), ("2.0", False)]
        served.forget_paths()
        assert list((tmp_path / "t").iterdir()) == []
        served.check()
    assert set(children(os.getpid())) <= before


def test_devices_of_one_kind_have_names_for_other_commands_and_one_whose_name_is_taken_has_none(tmp_path: Path) -> None:
    places, log = Places.of(runtime_dir=tmp_path), Log()
    own = ["--runtime-dir", str(tmp_path)]
    with Served(log) as served, Served(log) as others:
        for called in ("edu", "edu-2"):
            served.add(Wanted(called, "edu", own))
        served.wait()
        assert {device["name"] for device in all_devices(Instance(places, PATIENCE))} == {"edu", "edu-2"}
        others.add(Wanted("edu-2", "edu", own))
        others.wait()
    assert any("other commands cannot reach this device: " in text for name, text in log.lines if name == "edu-2")


def test_a_device_that_cannot_start_is_told_and_its_log_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_like_it\n")
    log = Log()
    with Served(log) as served:
        served.add(Wanted("broken", str(tmp_path / "broken.py")))
        with pytest.raises(MachineError, match="the device broken has ended with status 1"):
            served.wait()
    assert any("No module named 'nothing_like_it'" in text for _, text in log.lines)


def test_one_that_takes_longer_to_end_than_another_ends_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    log = Log()
    with Served(log) as served:
        served.add(Wanted("edu", "edu"))
        served.add(Wanted("slow", str(tmp_path / "slow.py"), ["--filter", "counting"]))
        served.wait()
    assert ("slow", "            1 end") in log.lines


def test_a_device_that_is_killed_is_told_at_once_and_when_it_is_asked_for() -> None:
    log = Log()
    before = set(children(os.getpid()))
    with Served(log) as served:
        served.add(Wanted("edu", "edu"))
        served.wait()
        (pid,) = set(children(os.getpid())) - before
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE
        while ("edu", "the device was ended by SIGKILL") not in log.lines:
            assert time.monotonic() < deadline
            select.select([], [], [], 0.01)
        with pytest.raises(MachineError, match="was ended by SIGKILL"):
            served.check()
