"""The control API, as any varlink client meets it."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from operating.instance import LEAVE, PATIENCE, PLAIN, Instance, connect, eventually, write
from operating.varlink import INTERFACE, Refused, Varlink
from vfio_user import Client

METHODS = {
    "About", "List", "Describe", "Disconnect", "Start", "Stop", "Restart", "Move", "Reset", "Set", "Reload",
    "Registers", "Maps", "Poke", "Interrupt", "Statistics", "Configuration", "Folders", "Log", "Monitor", "Trace",
    "Capture", "StopCapture", "Filters", "AddFilter", "RemoveFilter", "HandOver",
}  # fmt: skip


# -- what it says of itself


def test_it_says_who_it_is(daemon: Instance) -> None:
    info = daemon.call("org.varlink.service.GetInfo")
    assert info["product"] == "bellwired"
    assert info["interfaces"] == [INTERFACE, "org.varlink.service"]


def test_it_describes_its_interface_with_every_method_and_error(daemon: Instance) -> None:
    answer = daemon.call("org.varlink.service.GetInterfaceDescription", interface=INTERFACE)
    lines = answer["description"].splitlines()
    assert f"interface {INTERFACE}" in lines
    assert {line.split("(")[0].removeprefix("method ") for line in lines if line.startswith("method ")} == METHODS
    assert "error Failed (message: string, hint: string)" in [line.replace("Failed(", "Failed (") for line in lines]


# -- devices


def test_list_tells_of_every_device_in_order_of_their_names(daemon: Instance) -> None:
    name = daemon.add('device = "probe"\nautostart = false')
    devices = daemon.call("List")["devices"]
    assert [device["name"] for device in devices] == sorted(device["name"] for device in devices)
    states = {device["name"]: device["state"] for device in devices}
    assert states["steady"] == "running"
    assert states[name] == "stopped"


def test_describe_tells_of_process_memory_socket_and_what_happened(daemon: Instance) -> None:
    device = daemon.describe(daemon.add())
    assert Path(f"/proc/{device['pid']}").exists()
    assert 1 << 20 < device["memory"] < 64 << 20
    assert Path(device["socket"]).is_socket()
    assert [note["text"] for note in device["recent"]] == ["accepts clients"]
    assert device["client"] is None


def test_describe_tells_who_the_client_is_and_what_it_can_take(daemon: Instance, tmp_path: Path) -> None:
    name = daemon.add()
    memory = os.memfd_create("guest")
    os.ftruncate(memory, 1 << 20)
    try:
        with daemon.monitor(name) as events, connect(daemon.socket(name)) as client:
            client.dma_map(0, 1 << 20, memory)
            assert events.until("connected")["fields"]["text"] == f"client connected: process {os.getpid()}, user 0"
            assert "max_msg_fds" in events.until("introduced")["fields"]
            assert events.until("mapped")["fields"] == {"maps": "1", "bytes": str(1 << 20)}
            who = daemon.describe(name)["client"]
            assert (who["pid"], who["uid"], who["maps"], who["bytes"]) == (os.getpid(), os.getuid(), 1, 1 << 20)
            assert "max_msg_fds" in who["capabilities"]
        with daemon.monitor(name):
            assert eventually(lambda: daemon.describe(name)["client"] is None)
    finally:
        os.close(memory)


def test_registers_are_read_by_name_without_any_hook(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client:
        write(client, PLAIN, 0xABCD)
        registers = {each["name"]: each for each in daemon.call("Registers", name=name)["registers"]}
    assert registers["plain"]["value"] == 0xABCD
    assert (registers["leave"]["bar"], registers["leave"]["offset"], registers["leave"]["size"]) == (0, LEAVE, 4)
    assert registers["edition"]["access"] == "constant"


def test_a_device_with_thousands_of_registers_is_no_trouble(daemon: Instance) -> None:
    (daemon.plugins / "wide.py").write_text(
        "from bellwire import Bar, PciDevice\n"
        "class Wide(PciDevice, vendor=0x1234, device=2, class_code=0x088000):\n"
        "    mmio = Bar(0, size=1 << 15)\n"
        "    for at in range(8000): locals()[f'register_with_a_long_name_{at}'] = mmio.reg(4 * at)\n"
    )
    name = daemon.add('device = "wide"')
    assert len(daemon.call("Registers", name=name)["registers"]) == 8000
    assert daemon.describe(name)["restarts"] == 0


def test_statistics_count_what_has_happened(daemon: Instance) -> None:
    name = daemon.add()
    before = daemon.call("Statistics", name=name)["statistics"]
    with connect(daemon.socket(name)) as client:
        write(client, PLAIN, 1)
        during = daemon.call("Statistics", name=name)["statistics"]
    assert (before["clients"], before["connected"]) == (0, 0)
    assert (during["clients"], during["connected"]) == (1, 1)
    assert during["writes"] > before["writes"]


def test_reset_resets_the_device(daemon: Instance) -> None:
    name = daemon.add()
    with connect(daemon.socket(name)) as client:
        write(client, PLAIN, 42)
        daemon.call("Reset", name=name)
        registers = {each["name"]: each["value"] for each in daemon.call("Registers", name=name)["registers"]}
    assert registers["plain"] == 0


def test_an_option_can_be_changed_while_the_device_runs(daemon: Instance) -> None:
    name = daemon.add()
    daemon.call("Set", name=name, option="pace", value="1K")
    registers = {each["name"]: each["value"] for each in daemon.call("Registers", name=name)["registers"]}
    assert registers["plain"] == 1024


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("mood", "stubborn", "is for the start"),
        ("pace", "fast", "expected a value of type int"),
        ("pase", "1", "mean pace"),
    ],
)
def test_an_option_that_cannot_be_changed_is_refused(daemon: Instance, option: str, value: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        daemon.call("Set", name=daemon.add(), option=option, value=value)


def test_stop_removes_the_socket_and_start_makes_it_again(daemon: Instance) -> None:
    name = daemon.add()
    daemon.call("Stop", name=name)
    assert not daemon.socket(name).exists()
    assert daemon.describe(name)["state"] == "stopped"
    daemon.call("Start", name=name)
    connect(daemon.socket(name)).close()


def test_restart_gives_the_device_a_new_worker_on_the_same_socket(daemon: Instance) -> None:
    name = daemon.add()
    pid, inode = daemon.pid(name), daemon.socket(name).stat().st_ino
    daemon.call("Restart", name=name)
    assert daemon.pid(name) != pid
    assert daemon.socket(name).stat().st_ino == inode


def test_starting_what_runs_and_stopping_what_is_stopped_is_no_error(daemon: Instance) -> None:
    name = daemon.add()
    pid = daemon.pid(name)
    daemon.call("Start", name=name)
    assert daemon.pid(name) == pid
    daemon.call("Stop", name=name)
    daemon.call("Stop", name=name)


def test_configuration_is_every_file_that_counts(daemon: Instance) -> None:
    name = daemon.add()
    files = {file["path"]: file["content"] for file in daemon.call("Configuration")["files"]}
    assert files[str(daemon.devices / f"{name}.toml")] == 'device = "probe"'
    assert next(iter(files)) == str(daemon.config / "bellwired.toml")


# -- errors


@pytest.mark.parametrize("method", ["Describe", "Start", "Stop", "Restart", "Reset", "Registers", "Statistics"])
def test_an_unknown_device_is_an_error_that_names_those_there_are(daemon: Instance, method: str) -> None:
    with pytest.raises(Refused) as refused:
        daemon.call(method, name="nope")
    assert refused.value.error == f"{INTERFACE}.Failed"
    assert refused.value.parameters["message"] == "there is no device 'nope'"
    assert "steady" in refused.value.parameters["hint"]


@pytest.mark.parametrize("method", ["Reset", "Registers", "Statistics"])
def test_what_needs_a_worker_says_so_where_there_is_none(daemon: Instance, method: str) -> None:
    name = daemon.add('device = "probe"\nautostart = false')
    with pytest.raises(Refused, match="is not running: it is stopped"):
        daemon.call(method, name=name)


@pytest.mark.parametrize(
    ("method", "parameters", "error"),
    [
        ("Describe", {}, "InvalidParameter"),
        ("Describe", {"name": 3}, "InvalidParameter"),
        ("Nonsense", {}, "MethodNotFound"),
        ("org.example.Nothing", {}, "InterfaceNotFound"),
        ("Monitor", {}, "ExpectedMore"),
        ("_looking", {}, "ProtocolViolation"),
    ],
)
def test_a_call_that_makes_no_sense_is_an_error(
    daemon: Instance, method: str, parameters: dict[str, Any], error: str
) -> None:
    with pytest.raises(Refused) as refused:
        daemon.call(method, **parameters)
    assert refused.value.error.endswith(error)


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"not JSON\0",
        b"[1, 2]\0",
        b"\xff\xfe\xfd\0",
        b"[" * 60_000 + b"\0",
        b'{"method": ' + b"9" * 10_000 + b"}\0",
        b"x" * 200_000,
        b'{"method": "org.varlink.service.Nothing"}\0' * 2000,
    ],
    ids=["empty", "text", "array", "no UTF-8", "deep", "long number", "endless", "thousands ahead"],
)
def test_malformed_input_ends_that_connection_and_harms_nobody_else(daemon: Instance, data: bytes) -> None:
    with daemon.control() as bystander, daemon.control() as attacker:
        bystander.call("List")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            attacker.sock.sendall(data)
            while attacker.sock.recv(1 << 16):
                pass
        assert bystander.call("List")["devices"]
    assert daemon.call("List")["devices"]


def test_a_caller_that_hangs_up_in_the_middle_of_a_call_harms_nobody(daemon: Instance) -> None:
    name = daemon.add()
    for _ in range(20):
        with daemon.control() as caller:
            caller.send("Restart", name=name)
    assert eventually(lambda: daemon.describe(name)["state"] == "running")


def test_many_connections_are_served_at_once(daemon: Instance) -> None:
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(daemon.control()) for _ in range(100)]
        for caller in callers:
            caller.send("List")
        assert all(caller.receive()["devices"] for caller in callers)


def test_calls_sent_ahead_are_answered_in_order(daemon: Instance) -> None:
    with daemon.control() as caller:
        for _ in range(20):
            caller.send("List")
            caller.send("org.varlink.service.GetInfo")
        for _ in range(20):
            assert "devices" in caller.receive()
            assert "product" in caller.receive()


# -- events


def test_a_stream_tells_what_happens_to_one_device_alone(daemon: Instance) -> None:
    name, other = daemon.add(), daemon.add()
    with daemon.monitor(name) as events:
        daemon.call("Restart", name=other)
        daemon.call("Restart", name=name)
        assert events.receive()["event"]["device"] == name


def test_a_stream_tells_of_clients_as_they_come_and_go(daemon: Instance) -> None:
    name = daemon.add()
    with daemon.monitor() as events:
        connect(daemon.socket(name)).close()
        events.until("connected", name)
        assert "closed the connection" in events.until("left", name)["fields"]["text"]


def test_a_stream_tells_of_rings_by_mechanism_and_of_interrupts(daemon: Instance) -> None:
    name = daemon.add('device = "bell"')
    with daemon.monitor(name) as events, connect(daemon.socket(name)) as client:
        write(client, 0x04, 1)
        events.until("introduced")
        told: set[str] = set()
        deadline = time.monotonic() + PATIENCE
        while not {"rings_message", "interrupts"} <= told:  # the first counts may be from before the first ring
            assert time.monotonic() < deadline, told
            client.write(1, 0, bytes(4))
            if select.select([events.sock], [], [], 0.1)[0]:
                event = events.receive()["event"]
                told |= set(event["fields"] if event["kind"] == "statistics" else ())


def test_a_stream_tells_of_trouble_with_the_client(daemon: Instance) -> None:
    name = daemon.add()
    with daemon.monitor(name) as events, Client.connect(daemon.socket(name), timeout=PATIENCE) as client:
        with contextlib.suppress(OSError, Exception):
            client.read(0, 0xFFFF_0000, 4)
        assert events.until("trouble")["fields"]["text"].startswith("refused")


@pytest.mark.slow
def test_a_listener_that_is_too_slow_loses_events_and_is_told_how_many(daemon: Instance) -> None:
    name, other = daemon.add(), daemon.add('device = "probe"\nautostart = false')
    with daemon.control() as slow:
        slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.send("Monitor", more=True)
        for _ in range(600):  # of each client there are three events
            connect(daemon.socket(name)).close()
        lost = slow.until("lost")
        assert int(lost["fields"]["count"]) > 0
        daemon.call("Start", name=other)
        slow.until("started", other)


def test_a_listener_that_hangs_up_is_forgotten(daemon: Instance) -> None:
    before = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
    for _ in range(20):
        with daemon.monitor():
            pass
    daemon.reload()
    assert eventually(lambda: len(os.listdir(f"/proc/{daemon.process.pid}/fd")) <= before)


# -- who may do what


@contextlib.contextmanager
def as_user(user: str, groups: list[int], work: Callable[[], Any]) -> Iterator[Any]:
    """What ``work`` returns in a process of ``user`` with those groups: JSON, through a pipe."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(groups)
            os.setgid(pwd.getpwnam(user).pw_gid)
            os.setuid(pwd.getpwnam(user).pw_uid)
            os.write(theirs, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    yield json.loads(text)


def errors_of(path: Path) -> dict[str, str]:
    """What each method says to us; an empty text for success."""
    said = {}
    for method in ("List", "Describe", "Registers", "Filters", "Reset", "Stop", "Reload", "AddFilter"):
        parameters = {} if method in ("List", "Reload") else {"name": "one"}
        parameters |= {"filter": "count"} if method == "AddFilter" else {}
        try:
            with Varlink(path) as caller:
                caller.call(method, **parameters)
            said[method] = ""
        except Refused as refused:
            said[method] = refused.error.rpartition(".")[2]
        except OSError as error:
            said[method] = type(error).__name__
    return said


def reachable(instance: Instance) -> Path:
    """Its control socket, with every folder on the way open to all."""
    path = instance.runtime / "control"
    for folder in path.parents:
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o1:
            folder.chmod(0o755)
    return path


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_another_user_gets_nowhere_near_the_socket(daemon: Instance) -> None:
    path = reachable(daemon)
    with as_user("nobody", [], lambda: errors_of(path)) as said:
        assert set(said.values()) == {"PermissionError"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_only_members_of_the_control_group_may_look_and_they_change_nothing(instance: Instance) -> None:
    instance.settings('control-group = "games"')
    instance.configure("one")
    with instance:
        path = reachable(instance)
        assert (path.stat().st_gid, path.stat().st_mode & 0o777) == (grp.getgrnam("games").gr_gid, 0o660)
        with as_user("nobody", [grp.getgrnam("games").gr_gid], lambda: errors_of(path)) as said:
            assert said == {
                "List": "", "Describe": "", "Registers": "", "Filters": "", "AddFilter": "PermissionDenied",
                "Reset": "PermissionDenied", "Stop": "PermissionDenied", "Reload": "PermissionDenied",
            }  # fmt: skip
        assert instance.describe("one")["state"] == "running"
        path.chmod(0o666)  # whoever gets to the socket all the same is known for who it is
        with as_user("nobody", [], lambda: errors_of(path)) as said:
            assert set(said.values()) == {"PermissionDenied"}


def test_the_control_socket_is_for_its_owner_alone(daemon: Instance) -> None:
    assert (daemon.runtime / "control").stat().st_mode & 0o777 == 0o600


def test_a_daemon_that_hangs_is_told_from_one_that_works(daemon: Instance) -> None:
    """The commands do not wait for ever: see test_commands; here, the daemon goes on where it was."""
    os.kill(daemon.process.pid, signal.SIGSTOP)
    with daemon.control() as caller:
        caller.send("List")
        os.kill(daemon.process.pid, signal.SIGCONT)
        assert caller.receive()["devices"]
