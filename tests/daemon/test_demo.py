"""``bellwire demo``: what it claims, and that the claims can fail."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bellwire_vmm.guests.layout import BATCH
from bellwired.commands import demo
from bellwired.commands.cli import main
from bellwired.demo import ways
from bellwired.demo.on_kvm import a_ring
from daemon.commands import COMMAND, PATIENCE, bellwire, ended, first_child, gone, started

pytestmark = pytest.mark.daemon

COUNT = 640
NAMES = [
    "ioeventfd wildcard",
    "ioeventfd datamatch",
    "ioeventfd values",
    "shadow ioeventfd",
    "ioregionfd posted",
    "ioregionfd acknowledged",
    "REGION_WRITE posted",
    "REGION_WRITE with reply",
]


@pytest.fixture(scope="module")
def on_kvm() -> dict[str, Any]:
    """One run on real KVM."""
    done = bellwire("demo", "--count", str(COUNT), "--json", "-")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.kvm
def test_the_demo_on_kvm_covers_every_path(on_kvm: dict[str, Any]) -> None:
    assert on_kvm["kvm"] is True
    assert on_kvm["ok"] is True
    assert [path["name"] for path in on_kvm["paths"]] == NAMES


@pytest.mark.kvm
def test_every_ring_of_a_guest_arrives(on_kvm: dict[str, Any]) -> None:
    assert [(path["rung"], path["received"]) for path in on_kvm["paths"]] == [(COUNT, COUNT)] * len(NAMES)


@pytest.mark.kvm
def test_ioeventfds_cost_no_exit(on_kvm: dict[str, Any]) -> None:
    for path in on_kvm["paths"][:3]:
        assert path["mechanism"].startswith("ioeventfd")
        assert (path["vm_exits"], path["mmio_exits"], path["io_exits"]) == (0, 0, 0)


@pytest.mark.kvm
def test_messages_cost_an_exit_for_each_ring(on_kvm: dict[str, Any]) -> None:
    posted, waited = on_kvm["paths"][6:]
    assert (posted["mechanism"], waited["mechanism"]) == ("region_write posted", "region_write")
    assert posted["vm_exits"] == posted["mmio_exits"] == COUNT
    assert waited["vm_exits"] == COUNT


@pytest.mark.kvm
def test_ioregionfds_say_who_speaks_for_them(on_kvm: dict[str, Any]) -> None:
    for path in on_kvm["paths"][4:6]:
        assert path["mechanism"] in ("ioregionfd kernel", "ioregionfd relay")


@pytest.mark.kvm
def test_shadow_doorbells_say_who_rings_them_and_what_that_costs(on_kvm: dict[str, Any]) -> None:
    path = on_kvm["paths"][3]
    exits = {"shadow kernel": 0, "shadow relay": COUNT}
    assert path["vm_exits"] == path["mmio_exits"] == exits[path["mechanism"]]


@pytest.mark.kvm
def test_every_path_has_a_cost(on_kvm: dict[str, Any]) -> None:
    assert all(path["vcpu_us"] > 0 for path in on_kvm["paths"])


@pytest.mark.kvm
def test_round_trips_are_measured(on_kvm: dict[str, Any]) -> None:
    for path in on_kvm["paths"]:
        assert 0 < path["roundtrip_us"]["p50"] <= path["roundtrip_us"]["p99"]


@pytest.mark.kvm
def test_strace_finds_no_more_runs_than_the_demo_claims(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    assert strace, "strace is missing: apt install strace (make test does it)"
    log, report = tmp_path / "strace", tmp_path / "report.json"
    traced = [strace, "-f", "-e", "trace=ioctl", "-e", "signal=none", "-o", str(log)]
    subprocess.run(
        [*traced, *COMMAND, "demo", "--count", str(COUNT), "--json", str(report)],
        check=True,
        timeout=120,
        capture_output=True,
    )
    claims = json.loads(report.read_text())
    runs = [line.split()[0] for line in log.read_text().splitlines() if "KVM_RUN" in line and "resumed" not in line]
    [(_, calls), *_] = Counter(runs).most_common()  # another thread tries what this KVM can do, in a machine of its own
    assert 0 < calls <= claims["kvm_runs"]
    assert sum(path["vm_exits"] for path in claims["paths"]) < calls


def test_without_kvm_the_device_is_rung_from_here() -> None:
    done = bellwire("demo", "--no-kvm", "--count", str(COUNT), "--json", "-")
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert report["kvm"] is False
    assert report["ok"] is True
    assert [path["name"] for path in report["paths"]] == NAMES
    assert all(path["received"] == path["rung"] == COUNT and path["vm_exits"] is None for path in report["paths"])


def test_the_reason_for_no_kvm_comes_with_a_remedy(tmp_path: Path) -> None:
    assert "load kvm_amd or kvm_intel" in demo.kvm_unusable(str(tmp_path / "kvm"))
    assert "is not KVM" in demo.kvm_unusable("/dev/null")


def test_a_pipe_gets_no_colours() -> None:
    done = bellwire("demo", "--no-kvm", "--count", "100")
    assert "REGION_WRITE with reply" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_a_lost_ring_ends_the_demo_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ways.WAYS[0]._replace(counter=ways.WAYS[1].counter)
    monkeypatch.setattr(demo, "WAYS", (wrong, *ways.WAYS[1:]))
    assert main(["demo", "--no-kvm", "--count", "10"]) == 1
    assert "ioeventfd wildcard: 10 rung, 0 received" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"received": 9}, "10 rung, 9 received"),
        ({"answered": 4}, "5 rings waited for an interrupt, 4 got one"),
        ({"in_all": 14}, "15 rung in all, 14 received"),
        ({"disorder": 1}, "1 values were wrong or out of order"),
    ],
)
def test_each_count_that_is_off_is_a_problem(change: dict[str, int], words: str) -> None:
    right = {"rung": 10, "received": 10, "trips": 5, "answered": 5, "in_all": 15, "disorder": 0}
    assert ways.problem(**right) == ""
    assert ways.problem(**right | change) == words


def test_a_ring_of_a_short_batch_costs_as_much_as_any() -> None:
    assert a_ring([6400, 6400, 200], 2 * BATCH + 2) == [100, 100, 100]
    assert a_ring([100], 1) == [100]


def test_percentiles_are_samples() -> None:
    assert ways.percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert ways.percentile(range(1, 101), 99) == 99
    assert ways.percentile([], 50) == 0.0


@pytest.mark.parametrize("text", ["0", "-1", "x", str(demo.LARGEST + 1)])
def test_a_count_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        demo._count(text)


def test_a_narrow_terminal_gets_every_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    done = bellwire("demo", "--no-kvm", "--count", "123")
    assert "…" not in done.stdout
    assert done.stdout.count(" 123 ") >= 2 * len(NAMES)


def test_a_report_that_cannot_be_written_is_said_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_measure", lambda *_, **__: pytest.fail("measured"))
    assert main(["demo", "--no-kvm", "--count", "10", "--json", "/nonexistent/report.json"]) == 1
    assert "/nonexistent/report.json: cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("where", [pytest.param([], marks=pytest.mark.kvm), ["--no-kvm"]], ids=["kvm", "no-kvm"])
def test_a_device_that_dies_ends_the_demo_at_once(where: list[str]) -> None:
    with started("demo", "--count", str(demo.LARGEST), *where) as process:
        os.kill(first_child(process.pid), signal.SIGKILL)
        assert process.wait(PATIENCE) == 1
        assert process.stderr is not None
        said = process.stderr.read()
        assert "bellwire: the process of the device bell ended with status -9" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("where", [pytest.param([], marks=pytest.mark.kvm), ["--no-kvm"]], ids=["kvm", "no-kvm"])
def test_an_interrupted_demo_leaves_no_device_behind(where: list[str]) -> None:
    with started("demo", "--count", str(demo.LARGEST), *where) as process:
        device = first_child(process.pid)
        assert ended(process, signal.SIGINT) == 130
        assert gone(device)
