"""``bellwire vmm`` with --save, --restore, --migrate-to and --listen, as users meet it, with the least of guests."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwire_vmm.moving.wire import Kind, Wire
from bellwire_vmm.saved import file
from bellwire_vmm.saved.machine import to_json
from bellwired.commands.cli import main
from daemon.commands import PATIENCE, bellwire, started
from vmm.kernels import HANG, POWER_OFF, bzimage, out, say

pytestmark = pytest.mark.kvm

COUNTER = 0x3_8000
# inc qword [COUNTER]; cmp dword [COUNTER], n; jne back; then end the run with code 0
COUNT = b"\x48\xff\x04\x25" + COUNTER.to_bytes(4, "little") + b"\x81\x3c\x25" + COUNTER.to_bytes(4, "little")
KEY = bytes.fromhex("66ba fd03 ec a801 74fb")  # wait until the serial port has received a byte


def counting(times: int) -> bytes:
    """A micro guest."""
    return COUNT + times.to_bytes(4, "little") + b"\x75\xeb" + out(0xF4, 0)


@pytest.fixture
def guest(tmp_path: Path) -> list[str]:
    """Words for a guest that counts for about a second."""
    path = tmp_path / "count.bin"
    path.write_bytes(counting(400_000))
    return ["--guest", str(path), "--memory", "4"]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """What a command in this process does with SIGUSR1 ends with the test."""
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def saved(guest: list[str], tmp_path: Path) -> Path:
    """A machine in a file."""
    path = tmp_path / "saved"
    done = bellwire("vmm", *guest, "--save", str(path), "--at", "0.1")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert f"The guest was saved to {path}: " in done.stdout
    return path


@pytest.fixture
def console(tmp_path: Path) -> Callable[[bytes], list[str]]:
    """Words for a kernel with these instructions, whose console is a file."""

    def words(code: bytes) -> list[str]:
        (tmp_path / "kernel").write_bytes(bzimage(code))
        return ["--kernel", str(tmp_path / "kernel"), "--memory", "4", "--console", str(tmp_path / "console")]

    return words


def test_a_saved_guest_goes_on_as_often_as_you_like(saved: Path) -> None:
    for _ in range(2):
        done = bellwire("vmm", "--restore", str(saved))
        assert (done.returncode, done.stderr) == (0, "")
        assert f"The guest was restored from {saved}: " in done.stdout
        assert "The guest ended well after" in done.stdout


def test_a_restore_loads_nothing_that_only_other_commands_need(saved: Path) -> None:
    words = [sys.executable, "-X", "importtime", "-m", "bellwired", "vmm", "--restore", str(saved)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "bellwire_vmm.saved.file" in loaded
    assert not loaded & {"asyncio", "asyncvarlink", "rich", "shtab", "importlib.metadata", "bellwired.manager.main"}


def test_a_file_is_for_its_owner_alone(saved: Path) -> None:
    assert saved.stat().st_mode & 0o777 == 0o600


def test_a_guest_moves_to_another_process_and_ends_there(saved: Path, tmp_path: Path) -> None:
    path, figures = tmp_path / "move.sock", tmp_path / "figures"
    with started("vmm", "--listen", str(path)) as there:
        assert there.stderr is not None
        assert there.stderr.readline() == f"Waiting for a guest at {path}\n"
        here = bellwire(
            "vmm", "--restore", str(saved), "--migrate-to", str(path), "--at", "0.1", "--json", str(figures)
        )
        assert here.returncode == 0, here
        assert f"The guest was moved to {path}: " in here.stdout
        output, errors = there.communicate(timeout=PATIENCE)
        assert (there.returncode, errors) == (0, "")
    assert f"The guest came by {path}: " in output
    assert "The guest ended well after" in output
    found = json.loads(figures.read_text())
    assert found["bytes"] > found["state"] > 4096
    assert 0 < found["pause"] < 10
    assert not path.exists()


def test_linux_is_saved_when_it_says_a_text_and_goes_on_with_its_board(
    console: Callable[[bytes], list[str]], tmp_path: Path
) -> None:
    path = tmp_path / "saved"
    booted = console(say(b"up\r\n") + out(0xCF8, 0x8000_0000, 4) + KEY + say(b"bye\r\n") + POWER_OFF)
    done = bellwire("vmm", *booted, "--save", str(path), "--when", "up")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert (tmp_path / "console").read_bytes().startswith(b"up")
    with started("vmm", "--restore", str(path), "--timeout", "1") as process:
        output, errors = process.communicate(timeout=PATIENCE)
    assert "was restored from" in output
    assert errors == "bellwire: the guest was still running after 1 s\n"


def test_a_signal_saves_the_guest(console: Callable[[bytes], list[str]], tmp_path: Path) -> None:
    path, words = tmp_path / "saved", console(say(b"up\r\n") + HANG)
    with started("vmm", *words, "--save", str(path)) as process:
        while not (tmp_path / "console").exists() or (tmp_path / "console").read_bytes() != b"up\r\n":
            assert process.poll() is None
        process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert f"The guest was saved to {path}: " in output


def test_where_there_is_no_room_nothing_is_left_and_the_guest_goes_on(
    guest: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def limited(*arguments: Any) -> file.Written:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16384, before[1]))
        try:
            return written(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    written = file.write
    monkeypatch.setattr(file, "write", limited)
    assert main(["vmm", *guest, "--save", str(tmp_path / "saved"), "--at", "0.1"]) == 1
    said = capsys.readouterr()
    assert f"bellwire: {tmp_path / 'saved'}: File too large; the guest goes on" in said.err
    assert "The guest ended well after" in said.out
    assert [path.name for path in tmp_path.iterdir()] == ["count.bin"]


def test_a_guest_is_told_to_have_left_even_if_the_figures_cannot_be_written(
    guest: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, figures = tmp_path / "saved", tmp_path / "nowhere/figures"
    assert main(["vmm", *guest, "--save", str(path), "--at", "0.1", "--json", str(figures)]) == 1
    said = capsys.readouterr().err
    assert f"the guest was saved to {path}: " in said
    assert f"{figures}: cannot write: No such file or directory" in said


@pytest.mark.parametrize("kind", ["micro", "linux"])
def test_figures_on_stdout_are_alone_there(
    kind: str, guest: list[str], console: Callable[[bytes], list[str]], tmp_path: Path
) -> None:
    words = guest if kind == "micro" else console(say(b"up\r\n") + HANG)[:-2]
    done = bellwire("vmm", *words, "--save", str(tmp_path / "saved"), "--at", "0.1", "--json", "-")
    assert json.loads(done.stdout)["memory"] > 0
    assert "The guest was saved to " in done.stderr
    assert ("up" in done.stderr) == (kind == "linux")


def test_a_fatal_signal_in_the_middle_of_a_save_leaves_nothing(
    guest: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "write", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        main(["vmm", *guest, "--save", str(tmp_path / "saved"), "--at", "0.1"])
    assert ended.value.code == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["count.bin"]


def test_a_signal_that_comes_when_the_guest_has_left_changes_nothing(guest: list[str], tmp_path: Path) -> None:
    assert main(["vmm", *guest, "--save", str(tmp_path / "saved"), "--at", "0.1"]) == 0
    os.kill(os.getpid(), signal.SIGUSR1)


def test_a_file_that_takes_a_guest_for_another_says_that_there_are_no_results(
    guest: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "saved")
    monkeypatch.setattr(file, "to_json", lambda shape: to_json(shape | {"guest": "nvme"}))
    assert main(["vmm", *guest, "--save", path, "--at", "0.1"]) == 0
    assert main(["vmm", "--restore", path]) == 1
    assert "bellwire: no results of nvme at " in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--console", "log"), ("--save", "x", "--when", "y")])
def test_what_only_linux_has_is_refused_for_a_micro_guest_that_comes(saved: Path, words: tuple[str, ...]) -> None:
    done = bellwire("vmm", "--restore", str(saved), *words)
    assert done.returncode == 1
    assert f"{words[-2]} is for Linux, and the guest that comes is a micro guest" in done.stderr


def test_a_guest_that_ends_before_a_signal_asks_for_it_is_told_not_to_be_saved(
    guest: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vmm", *guest, "--save", str(tmp_path / "saved")]) == 0
    assert "The guest was not saved: no SIGUSR1 came in time.\n" in capsys.readouterr().out


def test_a_guest_that_cannot_move_goes_on_and_the_command_fails_at_its_end(guest: list[str], tmp_path: Path) -> None:
    path = tmp_path / "nobody.sock"
    done = bellwire("vmm", *guest, "--migrate-to", str(path), "--at", "0.1")
    assert done.returncode == 1
    assert f"bellwire: {path}: No such file or directory; is a VMM listening there?; the guest goes on" in done.stderr
    assert "The guest ended well after" in done.stdout


def test_a_source_that_dies_ends_its_target_and_one_that_says_nothing_does_not(tmp_path: Path) -> None:
    path = tmp_path / "move.sock"
    with started("vmm", "--listen", str(path)) as there:
        assert there.stderr is not None
        there.stderr.readline()
        with socket.socket(socket.AF_UNIX) as nobody:
            nobody.connect(os.fspath(path))
        said = f"bellwire: {path}: the source has closed the connection; waiting for another\n"
        assert there.stderr.readline() == said
        with socket.socket(socket.AF_UNIX) as source:
            source.connect(os.fspath(path))
            Wire(source, "target").send(Kind.HELLO, to_json({"memory": 4 << 20, "cpus": 1, "tsc_khz": 0}))
        _, errors = there.communicate(timeout=PATIENCE)
    assert there.returncode == 1
    assert errors.startswith(f"bellwire: {path}: ")
    assert not path.exists()


def test_a_guest_that_does_not_come_in_time_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "move.sock"
    with started("vmm", "--listen", str(path), "--timeout", "1") as there:
        assert there.stderr is not None
        there.stderr.readline()
        with socket.socket(socket.AF_UNIX) as nobody:  # it says nothing
            nobody.connect(os.fspath(path))
            _, errors = there.communicate(timeout=PATIENCE)
    assert there.returncode == 1
    assert errors.endswith(f"bellwire: {path}: no guest came within 1 s\n")
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_wait_for_a_guest_and_removes_the_socket(tmp_path: Path, number: int) -> None:
    path = tmp_path / "move.sock"
    with started("vmm", "--listen", str(path)) as there:
        assert there.stderr is not None
        there.stderr.readline()
        there.send_signal(number)
        assert there.wait(PATIENCE) == 128 + number
    assert not path.exists()


def test_a_listening_vmm_leaves_a_live_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "move.sock"
    with started("vmm", "--listen", str(path)) as there:
        assert there.stderr is not None
        there.stderr.readline()
        done = bellwire("vmm", "--listen", str(path))
        assert done.returncode == 1
        assert f"{path}: " in done.stderr
        assert path.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--restore", "/dev/null"], "/dev/null: "),
        (["--restore", "/nonexistent"], "/nonexistent: No such file or directory"),
        (["--restore", "x", "--memory", "8"], "--memory is for --guest and --kernel"),
        (["--restore", "x", "--vcpus", "2"], "--cpus is for --guest and --kernel"),
        (["--restore", "x", "--append", "y"], "--append is for --kernel"),
        (["--guest", "edu", "--at", "1"], "--at needs --save or --migrate-to"),
        (["--guest", "edu", "--save", "x", "--rounds", "3"], "--rounds needs --migrate-to"),
        (["--guest", "edu", "--save", "x", "--when", "y"], "--when is for --kernel, --restore and --listen"),
    ],
)
def test_what_does_not_go_together_is_refused(words: list[str], said: str) -> None:
    done = bellwire("vmm", *words)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
