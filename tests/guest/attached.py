"""A device served by a process of its own, as users serve it, with a tap before it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bellwired.guest.plan import Plugged
from daemon.commands import family
from tap import Tap

PATIENCE = 60.0  # seconds
JUDGING = ("--filter", "mistakes")
"""Flags of a device that tells of its driver's mistakes: see :attr:`Served.mistakes`."""


@dataclass(frozen=True)
class Device:
    """What to serve: a name or file as ``bellwire run`` takes it, options of it and of QEMU's side, and more flags."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    qemu: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


class Served:
    """A device that runs; it ends with the block that has made it."""

    def __init__(self, device: Device, folder: Path, process: subprocess.Popen[bytes], tap: Tap, log: Path) -> None:
        self.device = device
        self.folder = folder
        self.process = process
        self.tap = tap
        self._log = log

    @property
    def plugged(self) -> Plugged:
        """The device for QEMU, behind the tap."""
        return Plugged(self.tap.path, properties=self.device.qemu)

    @property
    def argument(self) -> str:
        """QEMU's ``-device`` for it."""
        return self.plugged.argument

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def mistakes(self) -> list[str]:
        """What it has told of its driver: that of a stock Linux makes no mistakes."""
        return [line for line in self.log.splitlines() if "the driver's " in line]


@contextlib.contextmanager
def running(device: Device, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process that serves ``device`` at ``folder/device``; what it says is in ``folder/log``."""
    folder.mkdir()
    path, log = folder / "device", folder / "log"
    options = [word for key, value in device.options.items() for word in ("-o", f"{key}={value}")]
    words = [sys.executable, "-m", "bellwired", "run", device.name, "--socket-path", os.fspath(path), *options]
    words += device.flags
    with (
        log.open("wb") as output,
        subprocess.Popen(with_us(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output) as process,
    ):
        try:
            assert process.stdout is not None
            if not process.stdout.readline():  # where it serves: it listens by now
                process.wait(PATIENCE)
                raise AssertionError(f"{device.name} is not served:\n{log.read_text(errors='replace')}")
            yield process
        finally:
            end(process)


@contextlib.contextmanager
def serving(device: Device, folder: Path) -> Iterator[Served]:
    """Serve ``device`` in ``folder``, which is made."""
    with (
        running(device, folder) as process,
        contextlib.closing(Tap(folder / "tap", folder / "device")) as tap,
    ):
        yield Served(device, folder, process, tap, folder / "log")


def with_us(words: list[str]) -> list[str]:
    """A command that ends when the tests do, even when those are killed."""
    return ["setpriv", "--pdeathsig=KILL", *words]


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a device, and wait until all its processes have ended: the last one closes the client's socket.

    Its client may send the next message only then. Stock QEMU aborts if a server ends before it has read a message.
    """
    handles = [os.pidfd_open(pid) for pid in family(process.pid)]
    process.kill()
    process.wait(PATIENCE)
    for handle in handles:
        assert select.select([handle], [], [], PATIENCE)[0], "a process of the device goes on"
        os.close(handle)


def end(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Politely, then not."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
