"""Control groups of devices: what is written to them, and that none is touched without delegation."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bellwired.box import groups
from bellwired.box.groups import CONTROLLERS, Groups, Limits
from bellwired.box.limits import join_group, limit_itself, limit_user
from bellwired.box.wanted import Wanted
from bellwired.errors import CommandError, SettingsError
from bellwired.manager.boxed import Boxed
from bellwired.settings import Device, decode


@pytest.mark.parametrize(
    ("limits", "files"),
    [
        (
            Limits(memory=64 << 20, cpu=150, tasks=9),
            {"memory.max": "67108864", "memory.swap.max": "0", "cpu.max": "150000 100000", "pids.max": "9"},
        ),
        (Limits(), {"memory.max": "max", "memory.swap.max": "max", "cpu.max": "max 100000", "pids.max": "max"}),
        (Limits(cpu=1), {"memory.max": "max", "memory.swap.max": "max", "cpu.max": "1000 100000", "pids.max": "max"}),
    ],
)
def test_limits_are_written_as_linux_reads_them(limits: Limits, files: dict[str, str]) -> None:
    assert limits.files(CONTROLLERS) == files | {"memory.oom.group": "1"}


def test_only_controllers_that_are_there_are_written() -> None:
    assert limits_of("pids") == {"pids.max": "9"}
    assert limits_of("cpu") == {"cpu.max": "20000 100000"}


def limits_of(controller: str) -> dict[str, str]:
    return Limits(memory=1 << 20, cpu=20, tasks=9).files([controller])


@pytest.mark.parametrize(("quota", "percent"), [("", 0), ("1%", 1), ("150%", 150), ("999999%", 999999)])
def test_a_quota_is_percent_of_one_processor(quota: str, percent: int) -> None:
    assert decode({"device": "bell", "cpu-quota": quota}, Device, "x").cpu_percent == percent


@pytest.mark.parametrize("quota", ["150", "0%", "-5%", "1.5%", "%", "1000000%", "5% "])
def test_another_quota_is_refused(quota: str) -> None:
    with pytest.raises(SettingsError, match="expected percent of one processor, as in 150%"):
        decode({"device": "bell", "cpu-quota": quota}, Device, "x")


def test_a_group_that_is_not_delegated_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    monkeypatch.setattr(groups, "_own", lambda _: tmp_path)
    taken = groups.take(tmp_path)
    assert (taken.base, taken.lack) == (None, "systemd has not delegated the daemon's control group")
    assert os.listdir(tmp_path) == ["cgroup.controllers"]


def test_a_group_without_controllers_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset io")
    monkeypatch.setattr(groups, "_own", lambda _: tmp_path)
    monkeypatch.setattr(groups, "_marked", lambda *_: True)
    taken = groups.take(tmp_path)
    assert (taken.base, taken.lack) == (None, "the daemon's control group has no controllers")
    assert os.listdir(tmp_path) == ["cgroup.controllers"]


def test_without_groups_nothing_is_made_and_nothing_limited() -> None:
    none = Groups(lack="there are none")
    assert none.make("bell", Limits(memory=1 << 20)) == ""
    assert none.remove("bell")
    assert not none.out_of_memory("bell")
    none.close()


def test_a_group_that_cannot_be_made_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"memory\.max: No such file or directory"):
        Groups(tmp_path, ["memory"]).make("bell", Limits())


def test_a_devices_group_has_no_name_of_the_kernels_or_of_the_managers(tmp_path: Path) -> None:
    for name in ("manager", "memory.max", "cgroup.procs"):
        assert Groups(tmp_path).make(name, Limits()) == str(tmp_path / f"device-{name}")


def test_a_limit_that_cannot_be_had_says_what_is_missing_and_what_to_do() -> None:
    parts = []
    wanted = Boxed("bell", Groups(lack="there are none")).wanted(Device(device="bell", cpu_quota="20%", tasks_max=9))
    for enter in (join_group, limit_itself, limit_user):
        enter(wanted, lambda *part: parts.append(part))
    assert [(name, state, about) for name, state, about, _ in parts] == [
        ("cpu-quota", "missing", "its processor time is not limited: there are none"),
        ("tasks-max", "missing", "its threads are not limited: there are none, and it has no user of its own"),
    ]
    assert all("Delegate=memory cpu pids" in hint for *_, hint in parts)


def test_a_worker_that_cannot_enter_its_group_does_not_run() -> None:
    with pytest.raises(FileNotFoundError):
        join_group(Wanted(control_group="/nowhere"), lambda *_: None)
