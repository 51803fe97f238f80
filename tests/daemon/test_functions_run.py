"""``bellwire run`` of a file with two functions: two processes, which end together or alone."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from bellwired.commands.cli import main
from daemon.commands import PATIENCE, bellwire, children, ended, line, started
from vfio_user import Client, RegionIndex

pytestmark = pytest.mark.daemon

CARD = """
from bellwire import Bar, Option, PciDevice

class Engine(PciDevice, vendor=0x1234, device=0xF0, class_code=0x088000):
    mmio = Bar(0, size=4096)
    speed = Option(5)
    pace = mmio.reg(0)

    def reset(self):
        self.pace = self.speed

class Console(PciDevice, vendor=0x1234, device=0xF1, class_code=0x078000):
    mmio = Bar(0, size=4096)

    def setup(self):
        SETUP

functions = [Engine, Console]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "card.py").write_text(CARD.replace("SETUP", "pass"))
    return tmp_path


@contextmanager
def card(folder: Path, *more: str) -> Iterator[Popen[str]]:
    words = ("--runtime-dir", str(folder / "run"), "--socket-path", str(folder / "s"), *more)
    with started("run", str(folder / "card.py"), *words) as process:
        yield process


def until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE
    for pid in pids:
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            assert time.monotonic() < deadline
            os.sched_yield()


def test_both_are_served_under_names_of_their_own_and_end_together(folder: Path) -> None:
    with card(folder, "-o", "speed=7") as process:
        assert [line(process) for _ in range(2)] == [
            f"card.0: engine, serving on {folder}/s.0\n",
            f"card.1: console, serving on {folder}/s.1\n",
        ]
        assert "functions of one slot" in line(process)
        assert '"addr":"10.1","multifunction":true' in line(process)
        with (
            Client.connect(folder / "s.0", timeout=PATIENCE) as one,
            Client.connect(folder / "s.1", timeout=PATIENCE) as other,
        ):
            for number, client in enumerate((one, other)):
                assert client.read(RegionIndex.CONFIG, 0, 4) == bytes((0x34, 0x12, 0xF0 + number, 0))
                assert client.read(RegionIndex.CONFIG, 0x0E, 1) == b"\x80"
            assert one.read(0, 0, 4) == (7).to_bytes(4, "little")
        told = bellwire("--runtime-dir", str(folder / "run"), "qemu-args", "card.0", "card.1", "--slot", "3")
        assert told.returncode == 0, told.stderr
        assert f'{{"path":"{folder}/s.1","type":"unix"}},"addr":"3.1"' in told.stdout
        pids = children(process.pid)
        assert len(pids) == 2
        assert bellwire("--runtime-dir", str(folder / "run"), "stop", "card.1").returncode == 0
        assert not (folder / "s.1").exists()
        with Client.connect(folder / "s.0", timeout=PATIENCE) as client:  # one that is stopped leaves the other alone
            assert client.read(RegionIndex.CONFIG, 2, 1) == b"\xf0"
        assert ended(process, signal.SIGINT) == 0
        until_gone(pids)
        assert not list(folder.glob("s.*"))


def test_one_that_fails_ends_the_other(folder: Path) -> None:
    (folder / "card.py").write_text(CARD.replace("SETUP", "open('/nonexistent')"))
    with card(folder) as process:
        assert process.wait(PATIENCE) == 1
        out, error = process.communicate()
        assert (out, "Console.setup failed at" in error) == ("", True)
        assert not list(folder.glob("s.*"))


def test_they_end_with_a_command_that_is_killed(folder: Path) -> None:
    reading, writing = os.pipe()
    words = ("--runtime-dir", str(folder / "run"), "--socket-path", str(folder / "s"), "--ready-fd", str(writing))
    with started("run", str(folder / "card.py"), *words, pass_fds=(writing,)) as process:
        os.close(writing)
        with open(reading, "rb") as ready:
            assert ready.read() == b"\n"  # and no process keeps it open
        pids = children(process.pid)
        process.kill()
        process.wait(PATIENCE)
        until_gone(pids)


def test_capabilities_are_those_of_all_functions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(folder / "card.py"), "--print-capabilities"]) == 0
    assert [each["device"] for each in json.loads(capsys.readouterr().out)["functions"]] == ["00f0", "00f1"]
