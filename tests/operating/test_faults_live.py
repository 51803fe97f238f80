"""Scenarios of faults in running devices, by command."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from operating.conftest import Run
from operating.instance import Instance, connect, eventually, read

SLOW = 'about = "Slow."\ndriver = "Waits."\n[[fault]]\nfault = "slow"\nby = "1ms"\n'


def faults(run: Run, name: str) -> list[dict[str, Any]]:
    status, out, err = run("fault", name, "--json")
    assert (status, err) == (0, "")
    found: list[dict[str, Any]] = json.loads(out)
    return found


def labels(run: Run, name: str) -> list[str]:
    return [each["label"] for each in faults(run, name)]


def test_a_device_is_put_under_a_scenario_and_taken_from_it(daemon: Instance, run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(SLOW.replace("slow", "all-ones").replace('by = "1ms"', "every = 2"))
    name = daemon.add('device = "edu"')
    with connect(daemon.socket(name)) as client:
        assert run("fault", name, str(mine)) == (0, "", "")
        assert [read(client, 0) == 0xFFFF_FFFF for _ in range(4)] == [False, True, False, True]
        (fault,) = faults(run, name)
        assert (fault["arguments"]["scenario"], fault["report"]) == ("mine", {"struck": 2, "seen": 4})
        mine.unlink()
        assert "it is under mine" in run("fault", name, "--stop", "hung")[2]
        assert run("fault", name, "--stop", "mine") == (0, "", "")
        assert [read(client, 0) == 0xFFFF_FFFF for _ in range(2)] == [False, False]
    assert daemon.describe(name)["statistics"]["faults"] == 2


def test_stop_takes_out_the_scenario_that_it_names_and_no_other_filter(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "edu"\n[[filter]]\nname = "count"')
    assert run("fault", name, "bad-dma", "lost-irq") == (0, "", "")
    assert labels(run, name) == ["corrupt-dma", "torn-dma", "lost-irq"]
    assert run("fault", name, "--stop", "bad-dma") == (0, "", "")
    assert labels(run, name) == ["lost-irq"]
    assert run("fault", name, "--stop") == (0, "", "")
    assert run("filter", name, "list")[1].count("count") == 1


def test_a_scenario_is_put_in_as_a_whole_or_not_at_all(daemon: Instance, run: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(SLOW + '[[fault]]\nfault = "stuck"\nregister = "nothing"\n')
    name = daemon.add('device = "edu"')
    status, _, err = run("fault", name, str(wrong))
    assert status == 1
    assert f"scenario wrong, fault 2: {name}: filter stuck: register=nothing: there is no register nothing" in err
    assert labels(run, name) == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("lost-irk",), "there is no scenario lost-irk: did you mean lost-irq?\n  bellwire fault --list shows them"),
        (("lost-irq", "nvme-media-error"), "scenario nvme-media-error: it is for nvme, not for edu"),
        (("--stop",), "there is no fault in "),
        (("--stop", "hung"), " is not under scenario hung: it is under none"),
        (("./not-there.toml",), "not-there.toml: No such file or directory"),
    ],
)
def test_a_scenario_that_cannot_be_says_why(daemon: Instance, run: Run, words: tuple[str, ...], why: str) -> None:
    name = daemon.add('device = "edu"')
    status, _, err = run("fault", name, *words)
    assert (status, why in err) == (1, True), err
    assert labels(run, name) == []


def test_a_device_keeps_its_faults_when_its_worker_dies(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "nvme"')
    assert run("fault", name, "nvme-fatal") == (0, "", "")
    pid = daemon.pid(name)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: daemon.runs_anew(name, pid))
    assert labels(run, name) == ["nvme-fatal"]


def test_the_scenarios_that_there_are_can_be_listed(daemon: Instance, run: Run) -> None:
    status, out, _ = run("fault", "--list", "--json")
    known = {each["name"]: each for each in json.loads(out)}
    assert status == 0
    assert len(known) >= 20
    assert known["nvme-fatal"]["devices"] == ["nvme"]
    status, out, _ = run("fault", "edu", "--list", "--json")
    assert "nvme-fatal" not in {each["name"] for each in json.loads(out)}
    assert "lost-irq" in run("fault", "--list")[1]


def test_a_file_may_name_faults_as_filters(daemon: Instance, run: Run) -> None:
    name = daemon.add('device = "nvme"\n[[filter]]\nname = "nvme-temperature"\ncelsius = 80\nfor = "60min"')
    (fault,) = faults(run, name)
    assert fault["report"] == {"struck": 1, "seen": 0}
