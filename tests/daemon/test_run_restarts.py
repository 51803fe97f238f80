"""``bellwire run`` goes on with its client when the process that serves dies, hangs, or is edited to death."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwired.commands import control_client
from bellwired.commands.cli import main
from bellwired.commands.control_client import Instance
from bellwired.errors import CommandError
from bellwired.manager.life import SHORT
from bellwired.places import Places
from daemon.commands import COMMAND, PATIENCE, bellwire, children, gone
from operating.instance import COMMAND as CONFIG_COMMAND
from vfio_user import Client, Disconnected, RegionIndex, RemoteError

pytestmark = pytest.mark.daemon

PLAIN, HANG, LEAVE, LATE, FALL, KILL = 0x00, 0x04, 0x08, 0x0C, 0x10, 0x14
DEVICE = """
import os
import signal
import sys

from bellwire import Bar, PciDevice

early = set(sys.modules)


class Mine(PciDevice, vendor=0x1234, device=0x0001, class_code=0x088000, repeats=True):
    "Dies as it is told to."

    mmio = Bar(0, size=4096)
    plain = mmio.reg(0x00)
    hang = mmio.reg(0x04)
    leave = mmio.reg(0x08)
    late = mmio.reg(0x0C, access="ro")
    fall = mmio.reg(0x10)
    kill = mmio.reg(0x14)

    def recovered(self, torn: bool) -> None:
        "Goes on."

    @late.read
    def late_read(self) -> int:
        return sum(name.startswith("bellwire.bundled.") for name in {*sys.modules} - early)

    @hang.write
    def hang_written(self, _: int) -> None:
        while True:
            pass

    @leave.write
    def leave_written(self, status: int) -> None:
        os._exit(status)

    @fall.write
    def fall_written(self, _: int) -> None:
        raise KeyboardInterrupt

    @kill.write
    def kill_written(self, number: int) -> None:
        os.kill(os.getpid(), number)
"""


class Running:
    """``bellwire run ./mine.py``: its parent is ``process``."""

    def __init__(self, folder: Path, *flags: str, session: bool = False) -> None:
        self.file, self.socket, self.log = folder / "mine.py", folder / "socket", folder / "log"
        self.places = ["--runtime-dir", str(folder / "run")]
        if not self.file.exists():
            self.file.write_text(DEVICE)
        ready, told = os.pipe()
        words = ["run", str(self.file), "--name", "dut", "--socket-path", str(self.socket), *self.places]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, *words, "--ready-fd", str(told), *flags],
                pass_fds=[told],
                stderr=log,
                start_new_session=session,
            )
        os.close(told)
        with open(ready, "rb") as file:
            self.is_ready = file.read() == b"\n"

    @property
    def pid(self) -> int:
        """Of the process that serves: the parent forks it, and nothing else."""
        (pid,) = children(self.process.pid)
        return pid

    def said(self) -> str:
        return self.log.read_text()


@contextlib.contextmanager
def run(folder: Path, *flags: str, session: bool = False) -> Iterator[Running]:
    running = Running(folder, *flags, session=session)
    with running.process:
        try:
            yield running
        finally:
            running.process.kill()


@contextlib.contextmanager
def connected(running: Running) -> Iterator[Client]:
    with Client.connect(running.socket, timeout=PATIENCE) as client:
        client.write(RegionIndex.CONFIG, CONFIG_COMMAND, b"\x06\0")
        yield client


def read(client: Client, at: int) -> int:
    return int.from_bytes(client.read(0, at, 4), "little")


def write(client: Client, at: int, value: int, *, posted: bool = False) -> None:
    client.write(0, at, value.to_bytes(4, "little"), posted=posted)


def test_the_client_is_served_on_however_the_process_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run(tmp_path) as running, connected(running) as client:
        write(client, PLAIN, 42)
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS):
            os.kill(running.pid, number)
            assert read(client, PLAIN) == 42
            assert f"its process was killed by {number.name}" in running.said()
        for at, value in ((LEAVE, 3), (LEAVE, 0), (FALL, 1)):
            with contextlib.suppress(RemoteError):
                write(client, at, value)
            assert read(client, PLAIN) == 42
        before = running.pid
        assert main(["move", "dut", *running.places]) == 0
        assert read(client, PLAIN) == 42
        assert running.pid != before
        capsys.readouterr()
        assert main(["status", "dut", *running.places, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["hand_overs"]["reason"] == "it was moved by hand"
        assert told["client"]["pid"] == os.getpid()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE) == 0
        assert not running.socket.exists()


def test_a_successor_does_not_import_the_devices_that_it_does_not_run(tmp_path: Path) -> None:
    with run(tmp_path) as running, connected(running) as client:
        os.kill(running.pid, signal.SIGKILL)
        assert read(client, LATE) == 0


def test_a_device_whose_recovered_ends_its_process_is_reset(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(DEVICE.replace('"Goes on."', "os._exit(7)"))
    with run(tmp_path) as running, connected(running) as client:
        write(client, PLAIN, 42)
        os.kill(running.pid, signal.SIGKILL)
        assert read(client, PLAIN) == 0
        assert running.said().count("status 7") == 1


def test_a_process_that_hangs_or_is_stopped_is_replaced(tmp_path: Path) -> None:
    with run(tmp_path, "--hang-timeout", "1") as running, connected(running) as client:
        write(client, PLAIN, 42)
        with pytest.raises(RemoteError) as refused:
            write(client, HANG, 1)
        assert refused.value.errno == errno.EIO
        os.kill(running.pid, signal.SIGSTOP)
        assert read(client, PLAIN) == 42
        assert "it hung for 1." in running.said()
        assert "a signal had stopped it for 1." in running.said()


def test_a_command_that_kills_every_process_fails_and_a_device_that_dies_too_often_is_given_up(tmp_path: Path) -> None:
    with run(tmp_path) as running, connected(running) as client:
        write(client, PLAIN, 42)
        with pytest.raises(RemoteError) as refused:
            write(client, KILL, signal.SIGKILL)
        assert refused.value.errno == errno.EIO
        assert read(client, PLAIN) == 42
        with pytest.raises(Disconnected):
            die_again_and_again(running, client)
        assert running.process.wait(PATIENCE) == 1
        assert "dut is given up: its process was killed by SIGKILL; 11 times in 300 s" in running.said()
        assert not running.socket.exists()


def die_again_and_again(running: Running, client: Client) -> None:
    """Kill each process that serves, once it has lived so long that the next one starts at once."""
    while True:
        end = time.monotonic() + SHORT
        while time.monotonic() < end:
            read(client, PLAIN)
        os.kill(running.pid, signal.SIGKILL)
        read(client, PLAIN)


def test_ctrl_c_ends_parent_and_child_once(tmp_path: Path) -> None:
    with run(tmp_path, session=True) as running, connected(running):
        child = running.pid
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.process.wait(PATIENCE) == 0
        assert gone(child)
        assert running.said().count("SIGINT: stopping") == 1


def test_stop_returns_once_the_parent_has_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run(tmp_path) as running:
        daemon = Instance(Places.of(runtime_dir=tmp_path / "run"))
        child = running.pid
        running.process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(control_client, "ENDS", 0.1)
        with pytest.raises(CommandError, match="dut stops, and has not ended"):
            control_client.stop(daemon, "dut")
        assert gone(child)
        running.process.send_signal(signal.SIGCONT)
        assert running.process.wait(PATIENCE) == 0
    with run(tmp_path) as running:
        assert bellwire("stop", "dut", *running.places).returncode == 0
        assert not running.socket.exists()
        assert running.process.poll() == 0


def test_the_child_and_the_sockets_go_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    with run(tmp_path) as running, connected(running) as client:
        child = running.pid
        keepers = children(child)
        running.process.kill()
        assert gone(child)
        with pytest.raises(Disconnected):
            read(client, PLAIN)
        assert all(map(gone, keepers))
        assert not running.socket.exists()
        assert not (tmp_path / "run" / "dut.run").exists()


def test_without_restart_it_dies_as_its_process_does(tmp_path: Path) -> None:
    with run(tmp_path, "--no-restart") as running, connected(running) as client:
        assert not [pid for pid in children(running.process.pid) if children(pid)]
        running.process.kill()
        with pytest.raises(Disconnected):
            read(client, PLAIN)


def test_a_device_that_cannot_start_is_not_started_again(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(DEVICE + "\n    def setup(self):\n        os.kill(os.getpid(), signal.SIGSEGV)\n")
    with run(tmp_path) as running:
        assert not running.is_ready
        assert running.process.wait(PATIENCE) == 1
        assert running.said().count("SIGSEGV") == 1


def test_edited_code_that_dies_can_be_edited_again(tmp_path: Path) -> None:
    with run(tmp_path, "--reload", "--hang-timeout", "0.4") as running, connected(running) as client:
        write(client, PLAIN, 42)
        running.file.write_text(DEVICE + "\n    @plain.read\n    def plain_read(self):\n        os._exit(5)\n")
        wait_for(running, "the new code goes on")
        with pytest.raises(RemoteError):
            read(client, PLAIN)
        running.file.write_text(DEVICE)
        wait_for(running, "the new code goes on", times=2)
        assert read(client, PLAIN) == 42
        running.file.write_text("this is no Python")
        wait_for(running, "The code of before goes on")
        os.kill(running.pid, signal.SIGKILL)
        assert read(client, PLAIN) == 42
        assert "its files cannot be run, so it has those of" in running.said()


CURIOUS = """
try:
    open("{secret}").close()
    SEES = True
except OSError:
    SEES = False
"""


def test_code_that_a_process_has_left_runs_in_the_box_alone(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.touch()
    curious = (
        CURIOUS.format(secret=secret) + DEVICE + "\n    sees = mmio.reg(0x20, access='constant', reset=1 + SEES)\n"
    )
    with run(tmp_path, "--reload") as running, connected(running) as client:
        running.file.write_text(curious)
        wait_for(running, "the new code goes on")
        assert read(client, 0x20) == 1, "it was imported in the box"
        running.file.write_text("this is no Python")
        wait_for(running, "The code of before goes on")
        os.kill(running.pid, signal.SIGKILL)
        assert read(client, 0x20) == 1
        assert "its files cannot be run, so it has those of" in running.said()


@pytest.mark.parametrize(
    ("edit", "said", "why"),
    [
        ("def setup(self):\n        raise KeyError", "The code of before goes on", "not got further than its start"),
        ("def restored(self):\n        os._exit(5)", "status 5", "the process that tried them has ended"),
    ],
)
def test_edited_code_that_cannot_go_on_leaves_the_client_to_the_first_code(
    tmp_path: Path, edit: str, said: str, why: str
) -> None:
    with run(tmp_path, "--reload") as running, connected(running) as client:
        write(client, PLAIN, 42)
        running.file.write_text(f"{DEVICE}\n    {edit}\n")
        wait_for(running, said)
        if said != "status 5":
            assert bellwire("move", "dut", *running.places).returncode == 0
        assert read(client, PLAIN) == 42
        assert why in running.said()
        running.file.write_text(DEVICE)
        wait_for(running, "the new code goes on")
        bellwire("move", "dut", *running.places)
        assert read(client, PLAIN) == 42
        assert running.said().count(why) == 1


def wait_for(running: Running, words: str, times: int = 1) -> None:
    """Wait until its log has ``words``."""
    deadline = time.monotonic() + PATIENCE
    while running.said().count(words) < times:
        assert time.monotonic() < deadline, running.said()
        time.sleep(0.02)


@pytest.mark.parametrize("flag", ["--debug", "--record"])
def test_what_lives_as_long_as_the_process_does_not_go_with_restart(tmp_path: Path, flag: str) -> None:
    more = [] if flag == "--debug" else [str(tmp_path / "recording")]
    done = bellwire("run", "bell", "--restart", flag, *more, "--socket-path", str(tmp_path / "s"))
    assert done.returncode == 1
    assert f"--restart does not go with {flag}" in done.stderr
