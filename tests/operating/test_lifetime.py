"""What the processes are to each other: who dies with whom, what is inherited, what is left behind."""

from __future__ import annotations

import os
import pwd
import re
import signal
import socket
import stat
import threading
from pathlib import Path

import pytest

from bellwired.errors import CommandError
from bellwired.manager.manager import prepare
from daemon.commands import children
from operating.instance import EDITION, Instance, connect, eventually, open_files, over, read
from operating.varlink import Refused
from vfio_user import Client, Disconnected

WORKERS_OWN = re.compile(
    r"/dev/null|pipe:.*|socket:.*|anon_inode:\[(eventpoll|eventfd|userfaultfd)\]|/memfd:.*|/proc/\d+/pagemap|/dev/pts/.*|/dev/tty|/tmp/.*"
)


def test_the_fork_server_is_the_parent_of_all_workers(daemon: Instance) -> None:
    name = daemon.add()
    assert daemon.pid(name) in children(daemon.fork_server)
    assert children(daemon.process.pid) == [daemon.fork_server]


def test_a_worker_is_called_by_its_devices_name(daemon: Instance) -> None:
    name = daemon.add()
    assert Path(f"/proc/{daemon.pid(name)}/comm").read_text() == f"bw:{name}\n"


def test_a_worker_inherits_its_listener_and_its_control_socket_and_nothing_else(daemon: Instance) -> None:
    first, second = daemon.add(), daemon.add()
    with connect(daemon.socket(first)):
        links = open_files(daemon.pid(second))
    own = [link for fd, link in links.items() if fd > 2]
    assert not [link for link in own if not WORKERS_OWN.fullmatch(link)]
    assert sum(link.startswith("socket:") for link in own) == 2
    assert {link for link in own if link.startswith("pipe:")} <= {links[2]}  # the log's, opened once more
    assert all("deleted" in link for link in own if link.startswith("/") and not link.endswith("/pagemap"))


def test_a_workers_environment_has_nothing_that_is_for_the_manager(instance: Instance, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        instance.environment |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}
        instance.configure("one")
        with instance:
            environ = Path(f"/proc/{instance.pid('one')}/environ").read_bytes()
    assert b"NOTIFY_SOCKET" not in environ
    assert b"WATCHDOG" not in environ


def test_a_stop_leaves_no_process_and_no_socket(instance: Instance) -> None:
    paths = [instance.configure("one"), instance.configure("two", 'device = "bell"')]
    with instance:
        workers = children(instance.fork_server)
        server = instance.fork_server
        assert len(workers) == 2
        assert all(path.is_socket() for path in paths)
        assert instance.stop() == 0
    assert all(over(pid) for pid in [server, *workers])
    assert list(instance.runtime.iterdir()) == []
    assert "Traceback" not in instance.log
    assert "ERROR" not in instance.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_a_client_stops_all_in_order(instance: Instance, number: signal.Signals) -> None:
    path = instance.configure("one")
    with instance, connect(path) as client, instance.monitor() as events:
        assert read(client, EDITION) == 1
        assert instance.stop(number) == 0
        with pytest.raises(Disconnected):
            client.read(0, EDITION, 4)
        assert events.until("stopped")["device"] == "one"
        assert events.until("stopping")["device"] == ""
        with pytest.raises(EOFError):
            events.receive()
    assert "one: client left: the device is being stopped" in instance.log
    assert "Traceback" not in instance.log


def test_a_call_that_is_not_answered_yet_is_answered_before_the_daemon_ends(instance: Instance) -> None:
    instance.settings("stop-timeout = 0.5")
    instance.configure("one", 'device = "probe"\nautostart = false\noptions.mood = "sleeps"')
    with instance, instance.control() as caller:
        caller.send("Start", name="one")
        assert eventually(lambda: instance.describe("one")["state"] == "starting")
        assert instance.stop() == 0
        with pytest.raises(Refused, match="it was stopped"):
            caller.receive()


def starting(instance: Instance) -> bool:
    """Whether the daemon answers, and has a process for the device."""
    try:
        return bool(instance.describe("one")["pid"])
    except (FileNotFoundError, ConnectionRefusedError):  # its socket is not there yet, or not listened on
        return False


def test_a_stop_during_the_start_does_not_wait_for_it(instance: Instance) -> None:
    instance.settings("stop-timeout = 0.2")
    instance.configure("one", 'device = "probe"\noptions.mood = "sleeps"')
    instance.start()
    try:
        assert eventually(lambda: starting(instance))
        assert instance.stop() == 0
        assert "ready:" not in instance.log
    finally:
        instance.__exit__(None, None, None)


def test_a_stop_during_a_reload_does_not_wait_for_it(instance: Instance) -> None:
    instance.settings("stop-timeout = 0.2")
    instance.configure("one")
    with instance:
        instance.configure("one", 'device = "probe"\noptions.pace = 4')
        instance.configure("two", 'device = "probe"\noptions.mood = "sleeps"')
        instance.process.send_signal(signal.SIGHUP)
        starting = ("two", "starting")
        assert eventually(
            lambda: starting in [(each["name"], each["state"]) for each in instance.call("List")["devices"]]
        )
        assert instance.stop() == 0
    assert "Traceback" not in instance.log
    assert list(instance.runtime.iterdir()) == []


def test_no_worker_outlives_a_manager_that_is_killed(instance: Instance) -> None:
    instance.configure("one")
    instance.configure("two")
    with instance:
        server = instance.fork_server
        workers = children(server)
        instance.process.kill()
        assert all(over(pid) for pid in [server, *workers])
        assert len(workers) == 2


def test_after_a_kill_the_stale_sockets_are_replaced(instance: Instance) -> None:
    path = instance.configure("one")
    with instance:
        instance.process.kill()
        instance.process.wait()
    assert path.is_socket()
    with instance:
        connect(path).close()


def test_when_the_fork_server_is_killed_all_workers_come_back(instance: Instance) -> None:
    paths = [instance.configure("one"), instance.configure("two")]
    with instance, instance.monitor() as events:
        before, workers = instance.fork_server, {instance.pid("one"), instance.pid("two")}
        os.kill(before, signal.SIGKILL)
        assert {events.until("started")["device"] for _ in range(2)} == {"one", "two"}
        assert all(over(pid) for pid in workers)
        assert instance.fork_server != before
        for path in paths:
            connect(path).close()
        instance.call("Restart", name="one")
    assert "the fork server has died with status -9" in instance.log
    assert "Traceback" not in instance.log


def test_a_fork_server_that_cannot_live_is_not_tried_in_a_tight_circle(instance: Instance) -> None:
    instance.settings("restart-limit = 1000\nrestart-delay = 0.02\nrestart-delay-max = 0.05")
    instance.configure("one")
    with instance, instance.monitor("one") as events:
        for _ in range(3):
            assert eventually(lambda: bool(children(instance.process.pid)))
            os.kill(instance.fork_server, signal.SIGKILL)
            events.until("started")
    assert sum("the fork server has died" in line for line in instance.log.splitlines()) == 3


def test_a_stop_with_a_fork_server_that_is_stuck_ends_all_the_same(instance: Instance) -> None:
    instance.settings("stop-timeout = 0.5")
    instance.configure("one")
    with instance:
        server, worker = instance.fork_server, instance.pid("one")
        os.kill(server, signal.SIGSTOP)
        instance.call("Stop", name="one")
        assert instance.describe("one")["state"] == "stopped"
        os.kill(server, signal.SIGCONT)
        assert instance.stop() == 0
    assert over(worker)


def test_the_group_getting_the_stop_signal_does_not_cut_the_workers_stop_short(instance: Instance) -> None:
    path = instance.configure("one")
    with instance, connect(path):
        for pid in [instance.fork_server, instance.pid("one")]:
            os.kill(pid, signal.SIGTERM)
        assert instance.stop() == 0
    assert "SIGKILL" not in instance.log
    assert "the fork server has died" not in instance.log


def test_without_a_journal_each_line_begins_with_date_and_time(daemon: Instance) -> None:
    name = daemon.add('device = "serial"')
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    assert re.match(f"{when} INFO bellwired: {name}: accepts clients", daemon.said(f"{name}: accepts clients"))
    assert re.match(rf"{when} \[{name}\] INFO bellwire.device.serial: at the other end", daemon.said(f"[{name}]"))


def test_a_second_daemon_in_the_same_place_is_refused_and_does_no_harm(daemon: Instance, tmp_path: Path) -> None:
    second = Instance(tmp_path)
    second.runtime = daemon.runtime
    second.start()
    try:
        assert second.process.wait(30) == 1
    finally:
        second.__exit__(None, None, None)
    assert "a live server listens there" in second.log
    assert daemon.describe("steady")["state"] == "running"


def test_a_runtime_folder_that_others_may_write_is_refused(instance: Instance) -> None:
    instance.runtime.chmod(0o777)
    instance.start()
    try:
        assert instance.process.wait(30) == os.EX_CONFIG
    finally:
        instance.__exit__(None, None, None)
    assert f"{instance.runtime}: others than its owner may write it" in instance.log


def test_the_private_group_of_the_owner_may_write_the_runtime_folder(tmp_path: Path, group: list[str]) -> None:
    tmp_path.chmod(0o775)
    prepare(tmp_path)
    group.append("somebody")
    with pytest.raises(CommandError, match="others than its owner may write it"):
        prepare(tmp_path)


def test_a_socket_has_the_mode_owner_and_group_of_its_file(daemon: Instance) -> None:
    nobody = pwd.getpwnam("nobody")
    name = daemon.add('device = "probe"\nmode = "0620"\nowner = "nobody"\ngroup = "daemon"')
    status = daemon.socket(name).stat()
    assert stat.S_IMODE(status.st_mode) == 0o620
    assert status.st_uid == nobody.pw_uid
    assert status.st_gid == 1


def test_a_socket_is_for_its_owner_alone_unless_the_file_says_otherwise(daemon: Instance) -> None:
    assert stat.S_IMODE(daemon.socket(daemon.add()).stat().st_mode) == 0o600


def test_a_socket_without_a_folder_is_in_the_runtime_folder(daemon: Instance) -> None:
    name = daemon.add('device = "probe"\nsocket = "nearby"')
    assert daemon.describe(name)["socket"] == str(daemon.runtime / "nearby")
    connect(daemon.runtime / "nearby").close()


@pytest.mark.parametrize(
    ("key", "why"), [('owner = "no_such_user"', "there is no user"), ('group = "no_such_group"', "there is no group")]
)
def test_an_owner_who_does_not_exist_fails_the_device_without_a_socket(daemon: Instance, key: str, why: str) -> None:
    daemon.configure("orphaned", f'device = "probe"\n{key}')
    assert why in daemon.reload()["failed"]["orphaned"]
    assert daemon.describe("orphaned")["state"] == "failed"
    assert not daemon.socket("orphaned").exists()


def test_a_listener_that_was_passed_is_used(instance: Instance, tmp_path: Path) -> None:
    instance.configure("one")
    own = instance.configure("two")
    with socket.socket(socket.AF_UNIX) as listener:
        passed_path = tmp_path / "passed"
        listener.bind(str(passed_path))
        listener.listen()
        instance.passed["one"] = listener
        with instance:
            connect(passed_path).close()
            assert not instance.socket("one").exists()
            assert instance.describe("one")["socket"] == str(passed_path)
            connect(own).close()
            instance.call("Restart", name="one")
            connect(passed_path).close()
    assert passed_path.is_socket()  # it is the service manager's


def test_the_control_socket_can_be_passed_too(instance: Instance, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(instance.runtime / "control"))
        listener.listen()
        instance.passed["control"] = listener
        with instance:
            assert instance.call("List") == {"devices": []}
    assert (instance.runtime / "control").is_socket()


def test_clients_one_after_the_other_and_from_many_threads_are_all_served(daemon: Instance) -> None:
    path = daemon.socket(daemon.add())
    served: list[int] = []

    def client() -> None:
        with Client.connect(path, timeout=30) as each:
            each.write(7, 4, b"\x06\x00")
            served.append(read(each, EDITION))

    threads = [threading.Thread(target=client) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert served == [1] * 10
