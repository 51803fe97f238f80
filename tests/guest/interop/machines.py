"""A machine that firmware boots: it has no kernel, and a serial port that is a file, or a pair of pipes."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bellwired.guest.board import memory
from bellwired.guest.toolbox import Toolbox
from qemu import Attachable, attach, qemu

PATIENCE = 120.0  # seconds, for firmware in an emulated machine on a busy host


class Serial:
    """The other end of the machine's serial port."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log
        self.said = ""

    def type(self, text: str) -> None:
        """Send a line, or keys."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())

    def type_slowly(self, line: str) -> None:
        """Send a line to a BIOS, whose keyboard buffer is small: a key after the echo of the one before it."""
        for key in line:
            self.type(key)
            self.wait_for(re.escape(key))
        self.type("\r")

    def wait_for(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """The first match in what the machine has said since the last one."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while (found := re.search(pattern, self.said)) is None:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._process.stdout], [], [], max(left, 0))
            assert ready, f"no {pattern!r} after {timeout:.0f} s: {self.said[-2000:]!r}"
            more = os.read(self._process.stdout.fileno(), 1 << 16)
            assert more, f"QEMU has ended: {self._log.read_text(errors='replace')}"
            self.said += more.decode(errors="replace")
        self.said = self.said[found.end() :]
        return found


@contextlib.contextmanager
def booted(
    tools: Toolbox, folder: Path, devices: Sequence[Attachable], *arguments: str, mib: int = 256
) -> Iterator[Serial]:
    """A machine with these devices; ``arguments`` are more of QEMU's."""
    words = ["-accel", "tcg", *memory(mib), "-serial", "stdio", *arguments, *attach(devices)]
    with qemu(tools, folder, *words, talk=True) as process:
        yield Serial(process, folder / "qemu")
