"""``bellwire vmm --kernel``, as users meet it: with kernels of a few instructions, which any KVM can run."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.commands import bellwire
from vmm.kernels import HANG, POWER_OFF, RESET, bzimage, out, say

pytestmark = pytest.mark.kvm

PATIENCE = 60.0
REBOOT = out(RESET, 0x06) + HANG
ECHO = bytes.fromhex("66ba fd03 ec a801 74fb 66ba f803 ec ee ebef")  # wait for a key; say it; again


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return tmp_path / "kernel"


def boot(kernel: Path, code: bytes, *words: str) -> subprocess.CompletedProcess[str]:
    kernel.write_bytes(bzimage(code))
    return bellwire("vmm", "--kernel", str(kernel), "--memory", "4", *words)


def test_what_the_guest_says_comes_out_and_a_power_off_is_the_end(kernel: Path) -> None:
    done = boot(kernel, say(b"hello\r\n") + POWER_OFF)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("hello\n")
    assert "KVM_RUN returned" in done.stdout
    assert "The guest powered off after" in done.stdout


def test_the_console_may_be_a_file(kernel: Path, tmp_path: Path) -> None:
    console = tmp_path / "console"
    done = boot(kernel, say(b"hello\r\n") + POWER_OFF, "--console", str(console))
    assert done.returncode == 0
    assert console.read_bytes() == b"hello\r\n"
    assert "hello" not in done.stdout


def test_a_reboot_can_be_the_end(kernel: Path) -> None:
    done = boot(kernel, say(b"hello\r\n") + REBOOT, "--no-reboot")
    assert done.returncode == 0
    assert done.stdout.count("hello") == 1
    assert "The guest rebooted after" in done.stdout


def test_a_panic_is_repeated_and_has_a_status_of_its_own(kernel: Path) -> None:
    done = boot(kernel, say(b"[ 1.0] Kernel panic - not syncing: no init\r\n") + REBOOT)
    assert done.returncode == 3
    assert done.stdout.endswith("The guest's kernel panicked: Kernel panic - not syncing: no init\n")


def test_a_guest_that_cannot_go_on_says_where(kernel: Path) -> None:
    done = boot(kernel, say(b"hello\r\n") + b"\x0f\x0b")
    assert done.returncode == 1
    assert "a triple fault" in done.stderr


def test_the_exit_port_of_micro_guests_is_no_reboot(kernel: Path) -> None:
    done = boot(kernel, out(0xF4, 7) + HANG)
    assert done.returncode == 1
    assert "the guest wrote 7 to the exit port" in done.stderr


def test_a_guest_that_takes_too_long_is_given_up(kernel: Path) -> None:
    done = boot(kernel, HANG, "--timeout", "0.3")
    assert (done.returncode, done.stderr) == (1, "bellwire: the guest was still running after 0.3 s\n")


class Terminal:
    """The command on a terminal, and a person at it."""

    def __init__(self, kernel: Path) -> None:
        kernel.write_bytes(bzimage(say(b"ready") + ECHO))
        self.person, self.terminal = pty.openpty()
        self.before = termios.tcgetattr(self.terminal)
        self.output = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bellwired", "vmm", "--kernel", str(kernel), "--memory", "4"],
            stdin=self.terminal,
            stdout=self.terminal,
            stderr=self.terminal,
        )

    def see(self, text: bytes) -> None:
        """Wait until it has been printed."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.output:
            assert time.monotonic() < deadline, self.output
            if select.select([self.person], [], [], 0.1)[0]:
                self.output += os.read(self.person, 4096)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.person)
        os.close(self.terminal)


@pytest.fixture
def terminal(kernel: Path) -> Iterator[Terminal]:
    terminal = Terminal(kernel)
    yield terminal
    terminal.close()


def test_keys_reach_the_guest_and_the_escape_ends_it(terminal: Terminal) -> None:
    terminal.see(b"ready")
    os.write(terminal.person, b"a\x03b")
    terminal.see(b"a\x03b")  # Ctrl-C too
    assert not termios.tcgetattr(terminal.terminal)[3] & termios.ECHO
    os.write(terminal.person, b"\x1d\x1d\x1d")
    terminal.see(b"The guest was ended from the keyboard")
    assert terminal.process.wait(PATIENCE) == 0
    assert termios.tcgetattr(terminal.terminal) == terminal.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_the_terminal_is_as_it_was(terminal: Terminal, number: int) -> None:
    terminal.see(b"ready")
    terminal.process.send_signal(number)
    assert terminal.process.wait(PATIENCE) == 128 + number
    assert termios.tcgetattr(terminal.terminal) == terminal.before
