"""What ``bellwire run`` lets others see and do meanwhile, what it says at its end, and how it is debugged."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwired.commands import attach, control_client
from bellwired.commands.cli import main
from bellwired.listen import listening
from bellwired.places import Places
from daemon.commands import COMMAND, PATIENCE, bellwire, children, ended, gone, line, started
from vfio_user import Client, RegionIndex, RemoteError

pytestmark = pytest.mark.daemon

MINE = """
from enum import IntFlag

from bellwire import Bar, GuestError, MsiX, Option, PciDevice


class Status(IntFlag):
    DONE = 1
    LATE = 2


class Mine(PciDevice, vendor=0x1234, device=0x0001, class_code=0x088000):
    "A device of my own."
    pace = Option(3, help="how fast")
    irq = MsiX(2)
    mmio = Bar(0, size=4096)
    status = mmio.reg(0x0, Status)
    go = mmio.doorbell(0x8)
    copy = mmio.doorbell(0x18)
    stop = mmio.reg(0x10)
    wrong = mmio.reg(0x14)

    @pace.set
    def set_pace(self, pace: int) -> None:
        self.status = pace

    @go.ring
    def start(self) -> None:
        self.irq[1].trigger()

    @copy.ring
    def copy_some(self) -> None:
        self.dma.write(0x1000, self.dma.read(0, 3072))

    @stop.write
    def stop_here(self, value: int) -> None:
        breakpoint()
        self.status = value

    @wrong.write
    def fail(self, value: int) -> None:
        asked = value + 1
        raise GuestError("no") if value == 2 else ValueError("unheard of")
"""


class Running:
    """``bellwire run ./mine.py --name dut``, and where."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.socket = folder / "mine.sock"
        self.places = ["--runtime-dir", str(folder / "run")]
        self.said = [line(process) for _ in range(2)]

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        with Client.connect(self.socket, timeout=PATIENCE) as client:
            client.write(RegionIndex.CONFIG, 4, b"\x06\x00")
            yield client

    def end(self) -> tuple[str, str]:
        """What it has said since, on standard output and standard error."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0
        return out, err


def made(folder: Path) -> Path:
    """The device's file, and a folder for its control socket."""
    (folder / "run").mkdir(mode=0o755)
    path = folder / "mine.py"
    path.write_text(MINE)
    return path


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return made(tmp_path)


def words(mine: Path, *more: str) -> list[str]:
    folder = mine.parent
    places = ["--socket-path", str(folder / "mine.sock"), "--runtime-dir", str(folder / "run")]
    return ["run", str(mine), *places, *more]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """For tests that do not end it."""
    mine = made(tmp_path_factory.mktemp("shared"))
    with started(*words(mine, "--name", "dut")) as process:
        yield Running(mine.parent, process)


@pytest.fixture
def dut(mine: Path) -> Iterator[Running]:
    """For those that do."""
    with started(*words(mine, "--name", "dut")) as process:
        yield Running(mine.parent, process)


def asked(dut: Running, capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, str, str]:
    status = main([*command, *dut.places])
    said = capsys.readouterr()
    return status, said.out, said.err


# -- the control socket


def test_commands_find_a_device_in_the_foreground_by_its_name(
    shared: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    with shared.client() as client:
        client.write(0, 0, b"\x03\0\0\0")
        status, out, _ = asked(shared, capsys, "regs", "dut", "--json")
        registers = {each["name"]: each for each in json.loads(out)}
        assert (status, registers["status"]["meaning"]) == (0, "DONE|LATE")
        assert asked(shared, capsys, "set", "dut", "pace=1") == (0, "", "")
        assert client.read(0, 0, 4) == b"\x01\0\0\0"
        status, out, _ = asked(shared, capsys, "status", "dut", "--json")
        about = json.loads(out)
        assert (about["state"], about["socket"]) == ("running", str(shared.socket))
        assert [about["pid"]] == children(shared.process.pid)
        assert about["client"]["pid"] == os.getpid()
        assert (about["statistics"]["writes"], about["statistics"]["reads"]) == (2, 1)
        assert asked(shared, capsys, "reset", "dut") == (0, "", "")
        assert client.read(0, 0, 4) == bytes(4)


def test_a_device_in_the_foreground_is_listed_and_has_qemu_arguments(
    shared: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = asked(shared, capsys, "list", "--json")
    assert status == 0
    assert [(each["name"], each["state"]) for each in json.loads(out)] == [("dut", "running")]
    assert str(shared.socket) in asked(shared, capsys, "qemu-args", "dut")[1]


def test_a_listener_hears_what_happens_to_it_until_it_ends(dut: Running) -> None:
    folder = dut.socket.parent / "run"
    with started("monitor", "dut", "--json", "--runtime-dir", str(folder)) as monitor:
        assert monitor.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while not select.select([monitor.stdout], [], [], 0.1)[0]:  # it listens from some time on
            assert time.monotonic() < deadline
            with dut.client():
                pass
        with dut.client() as client:
            with contextlib.suppress(RemoteError):
                client.write(0, 0x14, b"\x01\0\0\0")
            while (event := json.loads(line(monitor)))["kind"] != "trouble":
                pass
            assert "unheard of" in event["fields"]["text"]
        dut.end()
        *_, last = map(json.loads, monitor.communicate(timeout=PATIENCE)[0].splitlines())
        assert (last["kind"], last["fields"]["text"]) == ("stopping", "dut ends")
        assert monitor.returncode == 0


def test_it_can_be_stopped_by_command_and_nothing_is_left(dut: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(dut, capsys, "stop", "dut") == (0, "", "")
    assert dut.process.wait(PATIENCE) == 0
    assert list((dut.socket.parent / "run").iterdir()) == []
    assert not dut.socket.exists()


def test_it_cannot_be_started_anew_by_command(shared: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(shared, capsys, "start", "dut") == (0, "", "")
    status, _, err = asked(shared, capsys, "restart", "dut")
    assert status == 1
    assert err.splitlines() == [
        "bellwire: dut runs in the foreground, without the daemon",
        "  start it anew where it was started",
    ]


def test_a_hook_that_hangs_is_said_to(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine.write_text(MINE.replace("        breakpoint()\n", "        while True:\n            pass\n"))
    with started(*words(mine, "--name", "dut")) as process:
        dut = Running(mine.parent, process)
        with dut.client() as client:
            client.write(0, 0x10, bytes(4), posted=True)
            deadline = time.monotonic() + PATIENCE
            while json.loads(asked(dut, capsys, "status", "dut", "--json")[1])["statistics"]:
                assert time.monotonic() < deadline
            process.kill()


def test_a_name_that_another_has_is_refused(shared: Running, mine: Path) -> None:
    done = bellwire("run", str(mine), "--socket-path", str(mine.parent / "s"), "--name", "dut", *shared.places)
    assert done.returncode == 1
    assert "dut.control: a live server listens there" in done.stderr
    assert "another --name" in done.stderr


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 65])
def test_a_name_that_is_none_is_refused(mine: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words(mine, f"--name={name}"))
    assert ended.value.code == 2
    assert "letters, digits" in capsys.readouterr().err


def test_who_has_not_asked_for_a_name_runs_on_without(mine: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "RUNTIME_DIRECTORY": "/proc/nowhere"}
    command = [*COMMAND, "run", str(mine), "--socket-path", str(tmp_path / "mine.sock")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert "serving" in line(process)
        assert ended(process, signal.SIGTERM) == 0
        assert process.stderr is not None
        assert "other commands cannot reach this device: /proc/nowhere" in process.stderr.read()


def test_one_that_was_killed_is_not_taken_for_running(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with started(*words(mine, "--name", "dut", "--no-sandbox")) as process:  # else the sockets are removed
        dut = Running(mine.parent, process)
        (child,) = children(process.pid)
        process.kill()
        assert gone(child)
    assert (dut.socket.parent / "run" / "dut.control").exists()
    status, _, err = asked(dut, capsys, "status", "dut")
    assert (status, "no daemon is running there" in err) == (1, True)
    assert asked(dut, capsys, "list")[0] == 1
    with started(*words(mine, "--name", "dut")) as process:
        assert asked(Running(mine.parent, process), capsys, "status", "dut")[0] == 0
        assert ended(process, signal.SIGTERM) == 0


def test_a_wrong_name_is_answered_with_those_that_run(shared: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no daemon is running there\n  bellwire run serves dut\n" in asked(shared, capsys, "regs", "dot")[2]


def test_a_control_socket_is_open_to_its_owner_alone(shared: Running) -> None:
    mode = (shared.socket.parent / "run" / "dut.control").stat().st_mode
    assert mode & 0o777 == 0o600


def test_a_name_that_is_a_path_names_no_socket(tmp_path: Path) -> None:
    with pytest.raises(control_client.NoDaemonError):
        control_client.method(control_client.Instance(Places.of(runtime_dir=tmp_path)), "Describe", name="../x")


# -- what it says


def test_what_it_logs_can_be_read_elsewhere(shared: Running, capsys: pytest.CaptureFixture[str]) -> None:
    with shared.client():
        pass
    assert "client connected" in asked(shared, capsys, "logs", "dut")[1]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_who_reads_no_further_ends_a_stream_quietly(shared: Running, form: list[str]) -> None:
    with shared.client() as client, contextlib.suppress(RemoteError):
        client.write(0, 0x14, b"\x01\0\0\0")  # so that there is something to read
    reader, writer = os.pipe()
    os.close(reader)
    logs = [*COMMAND, "logs", "-f", "dut", *form, *shared.places]
    done = subprocess.run(logs, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_one_that_hangs_hides_no_other(
    shared: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "PATIENCE", 0.3)
    hanging = shared.socket.parent / "run" / "a.control"
    with listening(hanging):
        status, out, _ = asked(shared, capsys, "list", "--json")
    assert (status, [each["name"] for each in json.loads(out)]) == (0, ["dut"])


def test_what_it_logs_has_the_time(dut: Running) -> None:
    with dut.client():
        pass
    _, err = dut.end()
    lines = err.partition("\n\n")[0].splitlines()  # the summary comes after an empty line
    assert lines
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d\d\d (INFO|WARNING) bellwire", each) for each in lines), err


def test_its_end_is_a_summary(dut: Running) -> None:
    with dut.client() as client:
        client.write(0, 0, b"\x01\0\0\0")
        client.read(0, 0, 4)
        client.read(0, 0, 4)
        client.write(0, 0x8, bytes(4))
        client.read(0, 0x800, 2)
        memory = os.memfd_create("guest")
        os.ftruncate(memory, 1 << 16)
        client.dma_map(0, 1 << 16, memory)
        os.close(memory)
        client.write(0, 0x18, bytes(4))
        for value in (1, 2, 2):
            with contextlib.suppress(RemoteError):
                client.write(0, 0x14, value.to_bytes(4, "little"))
        client.reset()
    printed, out = dut.end()
    assert "served" not in printed
    rows = {words[0]: words[1:] for words in map(str.split, out.splitlines()) if words}
    assert rows["what"] == ["read", "written", "rung", "by", "message"]
    assert rows["status"] == ["2", "1"]
    assert rows["go"] == ["1", "1"]
    assert rows["wrong"] == ["3"]
    assert re.search(r"^ *BAR 0, where nothing is +1 *$", out, re.MULTILINE)
    assert re.search(r"^ *config space +1 *$", out, re.MULTILINE)
    assert "MSI-X: 1: 1\n" in out
    assert "DMA: 3.0 KiB read, 3.0 KiB written\n" in out
    assert "Resets: 1\n" in out
    assert "Errors: 2 of the guest, 1 in the device's code\n" in out
    assert "dut has served 1 client in" in out


def test_where_nobody_came_there_is_no_summary(dut: Running) -> None:
    assert "served" not in dut.end()[1]


# -- QEMU's line


@pytest.mark.parametrize(("emulates", "words"), [(True, "-accel tcg -M"), (False, "-accel kvm -accel tcg -M")])
def test_the_line_for_qemu_asks_for_kvm_only_where_that_runs_a_kernel(
    emulates: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "emulates_kernels", lambda: emulates)
    assert words in attach.qemu_command(Path("/tmp/x.sock"), attach.accelerators())


# -- debugging


def test_breakpoint_is_an_error_that_explains_where_nobody_can_answer(dut: Running) -> None:
    with dut.client() as client:
        with pytest.raises(RemoteError):
            client.write(0, 0x10, b"\x07\0\0\0")
        client.write(0, 0, b"\x02\0\0\0")
    _, err = dut.end()
    assert re.search(r"mine\.py:\d+: breakpoint\(\): standard input is no terminal: .*bellwire run --debug", err)


class Terminal:
    """The user's, with ``bellwire run --debug`` on it."""

    def __init__(self, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self.said = ""
        self.process = subprocess.Popen(
            [*COMMAND, *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)

    def until(self, text: str) -> str:
        """What has been said up to ``text``, waited for."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.said:
            assert select.select([self._ours], [], [], deadline - time.monotonic())[0], self.said
            try:
                self.said += os.read(self._ours, 4096).decode()
            except OSError as error:
                raise AssertionError(self.said) from error
        before, _, self.said = self.said.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode() + b"\n")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(mine: Path) -> Iterator[Terminal]:
    with contextlib.closing(Terminal(*words(mine, "--debug"))) as terminal:
        yield terminal


def write_posted(mine: Path, offset: int, value: int) -> Client:
    client = Client.connect(mine.parent / "mine.sock", timeout=PATIENCE)
    client.write(0, offset, value.to_bytes(4, "little"), posted=True)
    return client


@pytest.mark.parametrize(("value", "error"), [(1, "ValueError: unheard of"), (2, "GuestError: no")])
def test_a_hook_that_raises_stops_in_pdb(mine: Path, terminal: Terminal, value: int, error: str) -> None:
    terminal.until("Ctrl-C ends it.")
    with write_posted(mine, 0x14, value) as client:
        terminal.until(error)
        terminal.until("(Pdb) ")
        terminal.type("p asked")
        assert f"{value + 1}\r\n" in terminal.until("(Pdb) ")
        terminal.type("c")
        assert client.read(0, 0, 4) == bytes(4)
    os.kill(terminal.process.pid, signal.SIGINT)
    terminal.until("has served 1 client")
    assert terminal.process.wait(PATIENCE) == 0


def test_breakpoint_stops_in_the_hook_and_the_guest_waits(mine: Path, terminal: Terminal) -> None:
    assert '"x-msg-timeout":86400000' in terminal.until("Ctrl-C ends it.")
    with write_posted(mine, 0x10, 5) as client:
        terminal.until("(Pdb) ")
        terminal.type("p value")
        assert "5\r\n" in terminal.until("(Pdb) ")
        terminal.type("c")
        assert client.read(0, 0, 4) == b"\5\0\0\0"


def test_q_in_the_debugger_ends_the_run(mine: Path, terminal: Terminal) -> None:
    terminal.until("Ctrl-C ends it.")
    with write_posted(mine, 0x14, 1):
        terminal.until("(Pdb) ")
        terminal.type("q")
        terminal.until("has served 1 client")
        assert terminal.process.wait(PATIENCE) == 0
