"""``bellwire run --filter``, and ``bellwire filter`` meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from bellwired.commands.cli import main
from daemon.commands import PATIENCE, bellwire, ended, line, started
from daemon.test_foreground import Running, made, words
from daemon.test_run_restarts import PLAIN, connected, read, run

pytestmark = pytest.mark.daemon


def test_filters_stand_before_the_device_from_the_start_and_by_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = made(tmp_path)
    with started(*words(mine, "--name", "dut", "--filter", "count", "--filter", "delay:read=20ms")) as process:
        running = Running(tmp_path, process)
        with running.client() as client:
            begun = time.monotonic()
            client.read(0, 0, 4)
            assert time.monotonic() - begun >= 0.02
            assert main(["filter", "dut", "remove", "delay", *running.places]) == 0
            assert main(["filter", "dut", "list", "--json", *running.places]) == 0
            (count,) = json.loads(capsys.readouterr().out)
            assert count["report"]["read status"] == 1


def test_at_the_end_it_prints_what_filters_have_found(tmp_path: Path) -> None:
    mine = made(tmp_path)
    with started(*words(mine, "--name", "dut", "--suggest", "--filter", "mistakes")) as process:
        running = Running(tmp_path, process)
        with running.client() as client:
            client.write(0, 0x800, bytes(4))
            client.read(0, 0x800, 4)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    assert re.search(
        r"The filter suggest has found:\n    \w+_800 = \w+\.reg\(0x800\)  # 1 reads 1 writes of 0x0\n", said
    )
    assert "The filter mistakes has found:" in said
    assert "1 a write of 4 bytes at BAR0+0x800, where nothing is\n" in said


def test_a_filter_that_cannot_start_is_an_error_of_one_line(tmp_path: Path) -> None:
    done = bellwire(*words(made(tmp_path), "--name", "dut", "--filter", "trace:only=nosuch"))
    assert done.returncode == 1
    assert "nosuch" in done.stderr
    assert "Traceback" not in done.stderr


REPORTS = """
from bellwire import PciDevice
from bellwire.filters import Filter

class Reporting(Filter):
    "Hangs at the end."
    def report(self):
        print("in the report", flush=True)
        while True:
            pass

class Mine(PciDevice, vendor=0x1234, device=0x0001, class_code=0x088000):
    "A device."
"""


def test_a_second_signal_ends_a_device_whose_filter_hangs_in_its_report(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(REPORTS)
    with started("run", str(file), "--filter", "reporting", "--socket-path", str(tmp_path / "socket")) as process:
        line(process)
        process.send_signal(signal.SIGTERM)
        while line(process) != "in the report\n":
            pass
        assert ended(process, signal.SIGTERM) == -signal.SIGTERM


def test_filters_and_faults_that_were_added_by_command_stay_when_the_process_dies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run(tmp_path, "--filter", "delay") as running, connected(running) as client:
        for command in (["fault", "dut", "config-ones"], ["filter", "dut", "add", "count:seed=3", "--place", "0"]):
            assert main([*command, *running.places]) == 0
        assert main(["filter", "dut", "remove", "delay", *running.places]) == 0
        for _ in range(2):
            os.kill(running.pid, signal.SIGKILL)
            read(client, PLAIN)
            capsys.readouterr()
            assert main(["filter", "dut", "list", "--json", *running.places]) == 0
            found = json.loads(capsys.readouterr().out)
            assert [each["label"] for each in found] == ["count", "config-ones"]
            assert found[0]["arguments"]["seed"] == "3"


def test_the_last_events_of_a_process_that_has_died_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with run(tmp_path, "--filter", "trace:log=no,only=mmio") as running, connected(running) as client:
        client.write(0, PLAIN, (7).to_bytes(4, "little"))
        os.kill(running.pid, signal.SIGKILL)
        assert read(client, PLAIN) == 7
        assert main(["trace", "dut", "--last", "1", "--ended", *running.places]) == 0
    assert capsys.readouterr().out[16:].rstrip() == "write   plain = 0x00000007  BAR0+0x0"
