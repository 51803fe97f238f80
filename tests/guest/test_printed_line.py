"""The command line that ``bellwire run`` prints, run as it is: the firmware of the machine finds the device."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attached import end, with_us
from bellwired.guest.toolbox import Toolbox
from daemon.commands import line, started

pytestmark = pytest.mark.guest

PATIENCE = 60.0
MAPPED = re.compile(r"PCI device 1234:11e8\s.*?BAR0: 32 bit memory at 0x[0-9a-f]+ \[0x[0-9a-f]+\]", re.DOTALL)


@pytest.fixture(params=[(), ("--debug",)], ids=["plain", "debug"])
def printed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The line, while the device is served."""
    socket, runtime = tmp_path / "edu.sock", tmp_path / "run"
    runtime.mkdir(mode=0o755)
    with started("run", "edu", "--socket-path", str(socket), "--runtime-dir", str(runtime), *request.param) as process:
        line(process)
        yield line(process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


def ask(qemu: subprocess.Popen[bytes], command: str, deadline: float) -> str:
    """What QEMU's monitor says to a command; first of all, to none."""
    assert qemu.stdin is not None
    assert qemu.stdout is not None
    qemu.stdin.write(f"{command}\n".encode() if command else b"")
    said = b""
    while not said.endswith(b"(qemu) "):
        ready, _, _ = select.select([qemu.stdout], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, said
        piece = os.read(qemu.stdout.fileno(), 1 << 16)
        assert piece, f"QEMU has ended: {said.decode(errors='replace')}"
        said += piece
    return said.decode(errors="replace")


def test_the_firmware_finds_the_device(tools: Toolbox, printed: str) -> None:
    program, *words = shlex.split(printed)
    assert program == "qemu-system-x86_64"
    quiet = ["-display", "none", "-serial", "none", "-monitor", "stdio"]
    deadline = time.monotonic() + PATIENCE
    with subprocess.Popen(
        with_us([*tools.qemu, *words, *quiet]),
        env=tools.qemu_environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    ) as qemu:
        try:
            said = ask(qemu, "", deadline)
            while not MAPPED.search(said):  # each BAR has a place once the firmware has been there
                assert time.monotonic() < deadline, said
                said = ask(qemu, "info pci", deadline)
        finally:
            end(qemu)
