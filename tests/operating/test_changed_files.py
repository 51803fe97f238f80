"""What has changed under a running device: its files, its socket, its code."""

from __future__ import annotations

import socket

from operating.conftest import Run
from operating.instance import Instance, connect, eventually


def troubles(daemon: Instance, name: str) -> dict[str, str]:
    found: dict[str, str] = daemon.describe(name)["troubles"]
    return found


def test_a_file_that_has_gone_bad_is_shown_until_it_is_mended(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    assert troubles(daemon, name) == {}
    assert "trouble" not in run("list")[1]
    daemon.configure(name, "device = 3")
    daemon.reload()
    assert troubles(daemon, name)["file"].endswith(f"{name}.toml:1: device = 3: Expected str, got int")
    assert f"{name}.toml:1: device = 3" in run("status", name)[1]
    assert " file" in next(line for line in run("list")[1].splitlines() if name in line)
    daemon.configure(name)
    daemon.reload()
    assert troubles(daemon, name) == {}


def test_options_that_a_reload_has_refused_are_shown(daemon: Instance) -> None:
    name = daemon.add()
    daemon.configure(name, 'device = "probe"\noptions.nothing = 1')
    daemon.reload()
    assert "probe has no option nothing" in troubles(daemon, name)["file"]
    daemon.configure(name)
    daemon.reload()
    assert troubles(daemon, name) == {}


def test_what_a_reload_has_refused_is_forgotten_with_a_good_one_though_the_device_was_stopped(daemon: Instance) -> None:
    name = daemon.add()
    daemon.configure(name, 'device = "probe"\noptions.nothing = 1')
    daemon.reload()
    assert "file" in troubles(daemon, name)
    daemon.call("Stop", name=name)
    daemon.configure(name, 'device = "probe"\nbusy-poll = 1')
    daemon.reload()
    daemon.call("Start", name=name)
    assert troubles(daemon, name) == {}


def test_a_socket_that_was_removed_is_shown_and_a_restart_makes_it_anew(daemon: Instance) -> None:
    name = daemon.add()
    daemon.socket(name).unlink()
    assert troubles(daemon, name)["socket"] == (
        f"{daemon.socket(name)} was removed or replaced, so no client finds it: bellwire restart {name}"
    )
    daemon.call("Restart", name=name)
    connect(daemon.socket(name)).close()
    assert troubles(daemon, name) == {}


def test_a_restart_leaves_a_device_alone_whose_socket_another_server_has_taken(daemon: Instance, run: Run) -> None:
    name = daemon.add()
    pid = daemon.pid(name)
    daemon.socket(name).unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(daemon.socket(name)))
        other.listen()
        assert "socket" in troubles(daemon, name)
        status, _, error = run("restart", name)
        assert (status, "a live server listens there" in error) == (1, True)
        assert (daemon.pid(name), daemon.describe(name)["state"]) == (pid, "running")
    daemon.call("Restart", name=name)
    assert troubles(daemon, name) == {}


def test_status_shows_the_code_that_runs_and_says_if_the_file_has_changed_since(daemon: Instance, run: Run) -> None:
    source = (daemon.plugins / "probe.py").read_text()
    mine = daemon.plugins / "mine.py"
    mine.write_text(source)
    name = daemon.add('device = "mine:probe"')
    assert daemon.describe(name)["code"] == {str(mine): mine.stat().st_mtime_ns / 1e9}
    assert troubles(daemon, name) == {}
    mine.write_text(source + "# edited\n")
    assert troubles(daemon, name)["code"] == f"changed since its worker started: {mine}: bellwire restart {name}"
    assert "Code: " in run("status", name)[1]
    daemon.call("Restart", name=name)
    assert eventually(lambda: troubles(daemon, name) == {})
