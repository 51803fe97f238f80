"""``bellwire boot`` as users run it: one command in a guest, a shell on a terminal, and ends of every kind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwired.commands.boot import FAILED
from daemon.commands import COMMAND, children

pytestmark = pytest.mark.guest

PATIENCE = 240.0  # seconds
DEVICE = """
from bellwire import Bar, PciDevice

class Answer(PciDevice, vendor=0x1234, device=0x0042, class_code=0x088000):
    "A register with the answer."
    mmio = Bar(0, size=4096)
    answer = mmio.reg(0x0, access="ro", reset=42)

class Question(Answer, device=0x0043):
    "The other function."

functions = [Answer, Question]
"""
SCRIPT = """
cat
cat /sys/bus/pci/devices/0000:00:01.0/device /sys/bus/pci/devices/0000:00:02.[01]/device
cat /sys/block/nvme0n1/size
grep -o ^uio_pci_generic /proc/modules
tail -n 1 /etc/resolv.conf
grep -c '^eth0.0002000A' /proc/net/route
pwd
echo written >shared/file
echo lost >elsewhere
cat /proc/cmdline >&2
grep -c ^processor /proc/cpuinfo
sleep 1000 &
exit 7
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files: nothing may be left there."""
    (tmp_path / "t").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    return tmp_path / "t"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    (folder / "answer.py").write_text(DEVICE)
    (folder / "test.sh").write_text(SCRIPT)
    (folder / "target").mkdir()
    (folder / "shared").symlink_to(folder / "target")
    return folder


@pytest.fixture(scope="module")
def done(tools: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """One command, with two devices and a module of the kernel's own."""
    words = ["boot", "nvme", "--share", "shared", "./answer.py", "--module", "uio_pci_generic", "-o", "nvme.size=16M"]
    words += ["--network", "--cpus", "2", "--append", "bench=1", "--console", "console", "--timeout", "100"]
    return subprocess.run(
        [*COMMAND, *words, "--", "sh", "./test.sh"],
        cwd=folder,
        input="typed\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_the_command_ends_with_the_status_of_the_guests(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 7, done.stderr


def test_its_output_is_the_guests_alone(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert (
        done.stdout == f"typed\n0xbe5d\n0x0042\n0x0043\n32768\nuio_pci_generic\nnameserver 10.0.2.3\n1\n{folder}\n2\n"
    )


def test_its_errors_and_the_devices_log_are_on_standard_error(done: subprocess.CompletedProcess[str]) -> None:
    assert "bench=1" in done.stderr
    assert "answer: answer.1 has served 1 client" in done.stderr
    assert "nvme: nvme has served 1 client" in done.stderr


def test_only_what_is_shared_is_written(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert (folder / "target" / "file").read_text() == "written\n"
    assert not (folder / "elsewhere").exists()


def test_the_console_is_in_its_file(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    assert "Linux version" in (folder / "console").read_text()


class Terminal:
    """A person at a terminal, and ``bellwire boot`` on it."""

    def __init__(self, *words: str) -> None:
        self.fd, theirs = pty.openpty()
        self.size(33, 101)
        self.process = subprocess.Popen(
            [*COMMAND, "boot", *words], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.seen = b""

    def size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text.encode() not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, self.seen.decode(errors="replace")
            self.seen += os.read(self.fd, 1 << 16)


@pytest.fixture
def terminal(tools: object, scratch: Path) -> Iterator[Terminal]:
    terminal = Terminal("edu", "--minimal")
    yield terminal
    terminal.process.kill()
    terminal.process.wait()
    os.close(terminal.fd)


def test_a_shell_has_the_terminals_size_and_keys_and_a_signal_ends_all(terminal: Terminal, scratch: Path) -> None:
    terminal.wait_for("# ")
    terminal.type("stty size; cat /sys/bus/pci/devices/0000:00:01.0/device\n")
    terminal.wait_for("33 101\r\n0x11e8\r\n")
    terminal.size(44, 55)
    terminal.process.send_signal(signal.SIGWINCH)  # the kernel sends it to a terminal's foreground alone
    terminal.type('until [ "$(stty size)" = "$((4*11)) 55" ]; do :; done; stty size\n')
    terminal.wait_for("44 55\r\n")
    terminal.type("sh -c 'echo sleeping $((6*8)); exec sleep 1000'\n")
    terminal.wait_for("sleeping 48")
    terminal.type("\x03")
    terminal.type("echo again $((6*7))\n")
    terminal.wait_for("again 42")
    started = [os.pidfd_open(pid) for pid in children(terminal.process.pid)]
    assert len(started) >= 3  # QEMU, virtiofsd, the device
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.process.wait(PATIENCE) == 128 + signal.SIGTERM
    for fd in started:
        assert select.select([fd], [], [], 0)[0]
        os.close(fd)
    assert list(scratch.iterdir()) == []


def test_ctrl_c_ends_a_command_its_device_and_the_guest(tools: object, scratch: Path) -> None:
    look = "cat /sys/bus/pci/devices/0000:01:00.0/device; exec sleep 1000"
    words = [*COMMAND, "boot", "edu", "--root-port", "--minimal", "--", "sh", "-c", look]
    with subprocess.Popen(words, cwd=scratch, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0x11e8\n"
        started = [os.pidfd_open(pid) for pid in children(process.pid)]
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 128 + signal.SIGINT
    for fd in started:
        assert select.select([fd], [], [], 0)[0]
        os.close(fd)
    assert list(scratch.iterdir()) == []


def machine_of(process: subprocess.Popen[str], program: str) -> int:
    """The process of ``bellwire boot`` that runs ``program``, waited for."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for pid in children(process.pid):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(word.endswith(program.encode()) for word in words) and b"-machine" in words:
                    return pid
        select.select([], [], [], 0.01)
    raise AssertionError(f"no {program}")


def test_a_qemu_that_is_killed_ends_all_with_a_status_of_its_own(tools: object, folder: Path, scratch: Path) -> None:
    words = [*COMMAND, "boot", "edu", "--", "true"]
    with subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        os.kill(machine_of(process, "qemu-system-x86_64"), signal.SIGKILL)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == FAILED
    assert "QEMU was ended by SIGKILL" in errors
    assert list(scratch.iterdir()) == []


def test_a_device_that_does_not_start_is_told_with_its_reason(tools: object, folder: Path) -> None:
    (folder / "broken.py").write_text("import nothing_like_it\n")
    words = [*COMMAND, "boot", "./broken.py", "--", "true"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == FAILED
    assert "broken.py:1: ModuleNotFoundError: No module named 'nothing_like_it'" in done.stderr
    assert "the device broken has ended with status 1" in done.stderr


def test_a_crash_of_the_kernel_is_shown_and_has_a_status_of_its_own(tools: object) -> None:
    words = [*COMMAND, "boot", "--minimal", "--", "sh", "-c", "echo begun; read word; echo c >/proc/sysrq-trigger"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd="/", stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        output, errors = process.communicate("go on\n", timeout=PATIENCE)
    assert (process.returncode, output) == (FAILED, "")
    assert "the guest's kernel has reported (panic):" in errors
    assert "write_sysrq_trigger" in errors
    assert "bellwire: the guest has ended" in errors
