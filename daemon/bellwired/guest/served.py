"""The devices of a machine: each is a ``bellwire run`` in a process of its own, whose log is passed on line by line."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bellwired.guest import processes
from bellwired.guest.errors import MachineError
from bellwired.guest.plan import Plugged
from bellwired.workers.process import environment, python

LONGEST_LINE = 1 << 16
KEPT = 20
"""Lines of a device's log that an error shows."""

Told = Callable[[str, str], None]
"""Takes the name of a device, and a line of its log."""


@dataclass(frozen=True)
class Wanted:
    """A device to serve: ``word`` as ``bellwire run`` takes it, and more arguments of that command."""

    name: str
    word: str
    arguments: Sequence[str] = ()


class Served:
    """Devices that run. They end with the block."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._closing = False
        self._running: list[tuple[str, subprocess.Popen[bytes], threading.Thread, list[str]]] = []
        self._stack = contextlib.ExitStack()
        self._folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bellwire-"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def add(self, wanted: Wanted) -> Plugged:
        """Serve a device. It may still be starting on return: a client that connects waits for it."""
        path = Path(self._folder) / wanted.name
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
            listener.bind(os.fspath(path))
            listener.listen()
            words = [*python(), "-m", "bellwired", "run", wanted.word, "--fd", str(listener.fileno())]
            process = processes.start(
                [*words, *wanted.arguments],
                fds=[listener.fileno()],
                environment=environment(),
                output=subprocess.PIPE,
                errors=subprocess.STDOUT,
            )
        last: list[str] = []
        thread = threading.Thread(target=self._read, args=(wanted.name, process, last), name="log", daemon=True)
        thread.start()
        self._running.append((wanted.name, process, thread, last))
        return Plugged(path, wanted.name)

    def forget_paths(self) -> None:
        """Remove the sockets' paths: QEMU has connected."""
        self._stack.close()

    def check(self) -> None:
        """Raise a MachineError if a device has failed."""
        for name, process, thread, last in self._running:
            if process.poll():
                thread.join(processes.PATIENCE)
                lines = "\n".join(last[-KEPT:])
                raise MachineError(f"the device {name} has ended with status {process.returncode}:\n{lines}")

    def close(self) -> None:
        """End the devices. What they say at their end is passed on."""
        self._closing = True
        for _, process, _, _ in self._running:
            process.terminate()
        for _, process, thread, _ in self._running:
            processes.end(process)
            thread.join(processes.PATIENCE)
        self._stack.close()

    def _read(self, name: str, process: subprocess.Popen[bytes], last: list[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            while line := lines.readline(LONGEST_LINE):
                text = line.decode(errors="replace").rstrip("\n")
                last.append(text)
                del last[:-KEPT]
                if text.strip():
                    self._told(name, text)
        if not self._closing:
            self._told(name, f"the device has ended with status {process.wait()}")
