"""The devices of a machine: each is a ``bellwire run`` in a process of its own, whose log is passed on line by line."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bellwired.guest import processes
from bellwired.guest.errors import MachineError
from bellwired.workers.process import environment, python

LONGEST_LINE = 1 << 16
START = 300.0  # seconds for the devices to serve, in an emulated machine on a busy host

MOST_FUNCTIONS = 8
"""Of a device in one slot (PCI Local Bus 3.0, 3.2.2.3.4)."""

Told = Callable[[str, str], None]
"""Takes the name of a device, and a line of its log."""


@dataclass(frozen=True)
class Wanted:
    """A device to serve: ``word`` as ``bellwire run`` takes it, and more arguments of that command."""

    name: str
    word: str
    arguments: Sequence[str] = ()


@dataclass(frozen=True)
class _Device:
    name: str
    process: subprocess.Popen[bytes]
    log: threading.Thread
    ready: int
    """A pipe that says when it serves."""


class Served:
    """Devices that run. They end with the block."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._closing = False
        self._devices: list[_Device] = []
        self._stack = contextlib.ExitStack()
        self._folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bellwire-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def add(self, wanted: Wanted) -> Path:
        """Start a device, whose socket will be at the path. :meth:`wait` waits until it serves."""
        path = Path(self._folder) / wanted.name
        ready, theirs = os.pipe()
        self._stack.callback(os.close, ready)
        try:
            words = [*python(), "-m", "bellwired", "run", wanted.word, "--socket-path", os.fspath(path)]
            words += ["--name", wanted.name, "--name-if-free"]
            process = processes.start(
                [*words, "--ready-fd", str(theirs), *wanted.arguments],
                fds=[theirs],
                environment=environment(),
                output=subprocess.PIPE,
                errors=subprocess.STDOUT,
            )
        finally:
            os.close(theirs)
        log = threading.Thread(target=self._read, args=(wanted.name, process), name="log", daemon=True)
        log.start()
        self._devices.append(_Device(wanted.name, process, log, ready))
        return path

    def wait(self, timeout: float = START) -> None:
        """Wait until all devices serve. Raises a MachineError if one of them fails, or takes too long."""
        deadline = time.monotonic() + timeout
        for device in self._devices:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([device.ready], [], [], left)[0]:
                raise MachineError(f"the device {device.name} does not serve after {timeout:.0f} s")
            if not os.read(device.ready, 1):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    device.process.wait(processes.PATIENCE)
                self.check()
                raise MachineError(f"the device {device.name} does not serve")

    def forget_paths(self) -> None:
        """Remove the sockets' paths: QEMU has connected."""
        self._stack.close()

    def check(self) -> None:
        """Raise a MachineError if a device has failed."""
        for device in self._devices:
            if device.process.poll():
                device.log.join(processes.PATIENCE)
                ending = processes.ending(device.process.returncode)
                raise MachineError(f"the device {device.name} {ending}", "its log says more")

    def close(self) -> None:
        """End the devices. What they say at their end is passed on."""
        self._closing = True
        for device in self._devices:
            device.process.terminate()
        for device in self._devices:
            processes.wait(device.process)
            device.log.join(processes.PATIENCE)
        self._stack.close()

    def _read(self, name: str, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            while line := lines.readline(LONGEST_LINE):
                text = line.decode(errors="replace").rstrip("\n")
                if text.strip():
                    self._told(name, text)
        if not self._closing:
            self._told(name, f"the device {processes.ending(process.wait())}")


def sockets(path: Path) -> list[Path]:
    """The sockets of a device that was started for ``path``: one, or one for each of its functions."""
    functions = [path.with_name(f"{path.name}.{number}") for number in range(MOST_FUNCTIONS)]
    return [path] if path.exists() else [each for each in functions if each.exists()]
