"""A reload reads files and plugins again, and touches only what has changed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from operating.instance import EDITION, QUICK, Instance, connect, over, read
from operating.varlink import Refused


def test_a_new_file_is_a_new_device(daemon: Instance) -> None:
    daemon.configure("fresh")
    assert daemon.reload()["started"] == ["fresh"]
    connect(daemon.socket("fresh")).close()


def test_a_device_that_does_not_start_by_itself_is_there_all_the_same(daemon: Instance) -> None:
    name = daemon.add('device = "probe"\nautostart = false')
    assert daemon.describe(name)["state"] == "stopped"
    assert not daemon.socket(name).exists()
    daemon.call("Start", name=name)
    connect(daemon.socket(name)).close()


def test_a_file_that_is_gone_stops_its_device(daemon: Instance) -> None:
    name = daemon.add()
    pid = daemon.pid(name)
    daemon.remove(name)
    assert daemon.reload()["stopped"] == [name]
    assert over(pid)
    assert not daemon.socket(name).exists()
    with pytest.raises(Refused, match="there is no device"):
        daemon.describe(name)


@pytest.mark.parametrize("masked", ["empty", "link to /dev/null"])
def test_a_masked_file_stops_its_device(daemon: Instance, masked: str) -> None:
    name = daemon.add()
    file = daemon.devices / f"{name}.toml"
    file.unlink()
    if masked == "empty":
        file.touch()
    else:
        file.symlink_to("/dev/null")
    assert daemon.reload()["stopped"] == [name]


def test_nothing_is_touched_that_has_not_changed(daemon: Instance) -> None:
    kept, changed = daemon.add(), daemon.add()
    pids = daemon.pid(kept), daemon.pid(changed)
    daemon.configure(changed, 'device = "probe"\noptions.pace = 4')
    outcome = daemon.reload()
    assert outcome["restarted"] == [changed]
    assert kept in outcome["unchanged"]
    assert daemon.pid(kept) == pids[0]
    assert daemon.pid(changed) != pids[1]


def test_an_edited_plugin_is_picked_up(daemon: Instance) -> None:
    source = (daemon.plugins / "probe.py").read_text()
    edited = daemon.plugins / "edited.py"
    edited.write_text(source)
    name, other = daemon.add('device = "edited:probe"'), daemon.add()
    pid = daemon.pid(other)
    edited.write_text(source.replace('"constant", reset=1', '"constant", reset=2'))
    assert daemon.reload()["restarted"] == [name]
    with connect(daemon.socket(name)) as client:
        assert read(client, EDITION) == 2
    assert daemon.pid(other) == pid


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("device = 3", "device = 3: Expected str, got int"),
        ("device = ", "not TOML"),
        ('device = "probe"\noptions.pase = 3', "probe has no option pase: did you mean pace?"),
        ('device = "probe"\noptions.pace = "quick"', "option pace=quick: expected a value of type int"),
        ('device = "nvme"\noptions.queues = 99', "option queues=99: expected 1 to 64"),
        ('device = "nvme"\noptions.size = 511', "size=511: expected a whole number of blocks"),
        ('device = "prope"', "there is no device 'prope'; did you mean probe?"),
    ],
)
def test_a_bad_file_leaves_the_device_running_as_it_was_and_is_reported(daemon: Instance, text: str, why: str) -> None:
    name = daemon.add()
    pid, since = daemon.pid(name), daemon.now()
    daemon.configure(name, text)
    assert why in daemon.reload()["failed"][name]
    daemon.said(why.partition(";")[0], since)
    assert daemon.pid(name) == pid
    assert why in daemon.reload()["failed"][name]  # and again, until it is mended
    daemon.configure(name, 'device = "probe"')
    outcome = daemon.reload()
    assert name in outcome["unchanged"]
    assert daemon.pid(name) == pid


def test_an_option_out_of_bounds_leaves_the_device_and_its_client_alone(daemon: Instance) -> None:
    name = daemon.add('device = "nvme"\noptions.queues = 4')
    pid = daemon.pid(name)
    with connect(daemon.socket(name)) as client:
        daemon.configure(name, 'device = "nvme"\noptions.queues = 99')
        assert "option queues=99: expected 1 to 64" in daemon.reload()["failed"][name]
        assert client.read(0, 0x08, 4) == bytes.fromhex("00040100")  # VS: it goes on as it was
    assert daemon.pid(name) == pid


def test_a_plugin_with_a_mistake_leaves_the_device_running_as_it_was(daemon: Instance) -> None:
    source = (daemon.plugins / "probe.py").read_text()
    broken = daemon.plugins / "broken.py"
    broken.write_text(source)
    name = daemon.add('device = "broken:probe"')
    pid = daemon.pid(name)
    broken.write_text("import nothing_like_this\n")
    assert "broken.py:1: ModuleNotFoundError" in daemon.reload()["failed"][name]
    assert daemon.pid(name) == pid


def test_a_bad_daemon_file_changes_nothing_of_the_daemon_and_devices_are_taken_up(daemon: Instance) -> None:
    file = daemon.config / "bellwired.toml"
    pid = daemon.pid("steady")
    good = file.read_text()
    daemon.settings("ping-intervall = 3")
    daemon.configure("late")
    outcome = daemon.reload()
    assert outcome["failed"]["bellwired.toml"] == (
        f"{file}:1: unknown key ping-intervall (did you mean ping-interval?)"
    )
    assert "late" in outcome["started"]
    daemon.settings(good)
    outcome = daemon.reload()
    assert ("steady" in outcome["unchanged"], outcome["failed"]) == (True, {})
    assert daemon.pid("steady") == pid


def test_the_daemons_own_settings_change_without_a_restart(daemon: Instance) -> None:
    name = daemon.add()
    pid = daemon.pid(name)
    daemon.settings(f"{QUICK}restart-limit = 0")
    assert name in daemon.reload()["unchanged"]
    assert daemon.pid(name) == pid
    with daemon.monitor(name) as events:
        os.kill(pid, signal.SIGKILL)
        events.until("failed", name)


def test_a_device_that_was_stopped_by_hand_is_not_started_by_a_reload(daemon: Instance) -> None:
    name = daemon.add()
    daemon.call("Stop", name=name)
    assert name in daemon.reload()["unchanged"]
    daemon.configure(name, 'device = "probe"\noptions.pace = 4')
    daemon.reload()
    assert daemon.describe(name)["state"] == "stopped"


def test_autostart_that_is_switched_on_starts_the_device(daemon: Instance) -> None:
    name = daemon.add('device = "probe"\nautostart = false')
    daemon.configure(name, 'device = "probe"\nautostart = true')
    daemon.reload()
    assert daemon.describe(name)["state"] == "running"


def test_a_socket_that_moves_is_gone_from_where_it_was(daemon: Instance, tmp_path: Path) -> None:
    name = daemon.add()
    moved = tmp_path / "moved"
    daemon.configure(name, f'device = "probe"\nsocket = "{moved}"\nmode = "0660"')
    daemon.reload()
    assert not daemon.socket(name).exists()
    connect(moved).close()
    assert daemon.describe(name)["socket"] == str(moved)


def test_a_client_waits_while_its_device_is_given_other_options(daemon: Instance) -> None:
    """The listener stays: nobody is refused at any moment."""
    name = daemon.add()
    inode = daemon.socket(name).stat().st_ino
    daemon.configure(name, 'device = "probe"\noptions.pace = 4')
    daemon.reload()
    assert daemon.socket(name).stat().st_ino == inode


def test_sighup_is_a_reload(daemon: Instance) -> None:
    daemon.configure("hung_up")
    since = daemon.now()
    daemon.process.send_signal(signal.SIGHUP)
    daemon.said("configuration read again: 1 started", since)
    connect(daemon.socket("hung_up")).close()


def test_sighup_with_a_bad_daemon_file_says_so_and_changes_nothing(daemon: Instance) -> None:
    since = daemon.now()
    daemon.settings("log-level = 5")
    daemon.process.send_signal(signal.SIGHUP)
    assert "expected debug or info or warning or error" in daemon.said("bellwired.toml:1: log-level = 5", since)


def test_the_log_level_changes_with_a_reload(daemon: Instance) -> None:
    daemon.settings(f'{QUICK}log-level = "error"')
    daemon.reload()
    since = daemon.now()
    daemon.reload()
    daemon.settings(QUICK)
    daemon.reload()
    daemon.said("configuration read again", since)
    assert sum("configuration read again" in line for line in daemon.log.splitlines()[since:]) == 1
