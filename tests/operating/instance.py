"""A private ``bellwired`` with folders of its own, as a process that tests operate."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from daemon.commands import children
from operating.varlink import Varlink
from vfio_user import Client, RegionIndex

PATIENCE = 30.0
PLUGINS = Path(__file__).parent / "plugins"
QUICK = """
ping-interval = 0.2
ping-timeout = 10
restart-delay = 0.02
restart-delay-max = 0.2
stop-timeout = 10
"""
COMMAND = 0x04
PLAIN, HANG, LEAVE, EDITION, FALL = 0x00, 0x04, 0x08, 0x0C, 0x10  # registers of plugins/probe.py


class Instance:
    """Its folders are made at once; the process runs inside a ``with`` block."""

    def __init__(self, folder: Path, settings: str = QUICK) -> None:
        self.config = folder / "config"
        self.runtime = folder / "run"
        self.plugins = self.config / "plugins"
        self.devices = self.config / "devices.d"
        for made in (self.devices, self.plugins, self.runtime):
            made.mkdir(parents=True)
        shutil.copyfile(PLUGINS / "probe.py", self.plugins / "probe.py")  # not its mode: groups may write a checkout
        self.settings(settings)
        self.environment: dict[str, str] = {}
        self.program = ["-m", "bellwired.manager.main"]
        """What Python runs."""
        self.flags: list[str] = []
        """More flags of the daemon."""
        self.prefix: list[str] = []
        """A command that starts the daemon as another user."""
        self.passed: dict[str, socket.socket] = {}
        """Sockets that the daemon gets as sd_listen_fds(3) has it, by name."""
        self.limits: tuple[int, int] | None = None
        """RLIMIT_NOFILE of the daemon, soft and hard, if it is another than ours."""
        self.reads = threading.Event()
        """Cleared, it stops the reader of the daemon's log."""
        self.reads.set()
        self.process: subprocess.Popen[str]
        self.renew()
        self._names = map("dev{}".format, itertools.count(1))

    def renew(self) -> None:
        """Nothing has been said."""
        self._lines: list[str] = []
        self._said = threading.Condition()

    # -- its files

    @property
    def places(self) -> list[str]:
        """The flags that name it."""
        return ["--config-dir", str(self.config), "--runtime-dir", str(self.runtime)]

    def settings(self, text: str) -> None:
        (self.config / "bellwired.toml").write_text(text)

    def configure(self, name: str, text: str = 'device = "probe"') -> Path:
        """A device's file; the path of its socket."""
        (self.devices / f"{name}.toml").write_text(text)
        return self.socket(name)

    def remove(self, name: str) -> None:
        (self.devices / f"{name}.toml").unlink()

    def socket(self, name: str) -> Path:
        return self.runtime / f"{name}.sock"

    # -- its life

    def start(self) -> Self:
        words = [*self.prefix, sys.executable, *self.program, *self.places, *self.flags]
        environment = {**os.environ, **self.environment}
        given = [sock.fileno() for sock in self.passed.values()]
        if given:
            environment |= {"LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": ":".join(self.passed)}
            moves = " ".join(f"{3 + at}<&{fd}" for at, fd in enumerate(given))
            moves += "".join(f" {fd}<&-" for fd in given if fd >= 3 + len(given))
            words = ["/bin/bash", "-c", f'LISTEN_PID=$$ exec "$0" "$@" {moves}', *words]  # exec keeps the pid
        self.process = subprocess.Popen(
            words, stderr=subprocess.PIPE, text=True, env=environment, pass_fds=given, start_new_session=True
        )
        if self.limits is not None:  # Python is still loading
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, self.limits)
        self._lines.clear()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __enter__(self) -> Self:
        self.start()
        try:
            self.said("ready:")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.reads.set()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its status after a signal."""
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status

    @property
    def log(self) -> str:
        with self._said:
            return "".join(self._lines)

    def said(self, text: str, since: int = 0) -> str:
        """The first line of its log with ``text`` in it, waited for; ``since`` as from :meth:`now`."""

        def found() -> str | None:
            return next((line for line in self._lines[since:] if text in line), None)

        with self._said:
            self._said.wait_for(lambda: found() or not self._reader.is_alive(), PATIENCE)
            line = found()
        assert line is not None, f"{text!r} was not said in\n{self.log}"
        return line

    def now(self) -> int:
        with self._said:
            return len(self._lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.reads.wait()
            with self._said:
                self._lines.append(line)
                self._said.notify_all()

    # -- what it is asked

    def control(self) -> Varlink:
        return Varlink(self.runtime / "control")

    def call(self, method: str, /, **parameters: Any) -> dict[str, Any]:
        with self.control() as control:
            return control.call(method, **parameters)

    @contextlib.contextmanager
    def monitor(self, name: str | None = None) -> Iterator[Varlink]:
        """A stream of events from now on."""
        with self.control() as control:
            control.send("Monitor", more=True, **({"name": name} if name else {}))
            control_listens(self, control)
            yield control

    def reload(self) -> dict[str, Any]:
        outcome: dict[str, Any] = self.call("Reload")["outcome"]
        return outcome

    def describe(self, name: str) -> dict[str, Any]:
        device: dict[str, Any] = self.call("Describe", name=name)["device"]
        return device

    def pid(self, name: str) -> int:
        pid: int = self.describe(name)["pid"]
        return pid

    def runs_anew(self, name: str, pid: int) -> bool:
        """Whether another worker than ``pid`` runs it, and is ready."""
        device = self.describe(name)
        return device["state"] == "running" and device["pid"] not in (0, pid)

    def add(self, text: str = 'device = "probe"') -> str:
        """Configure another device, and have it taken up; its name."""
        name = next(self._names)
        self.configure(name, text)
        self.reload()
        return name

    @property
    def fork_server(self) -> int:
        (pid,) = children(self.process.pid)
        return pid


def control_listens(instance: Instance, control: Varlink) -> None:
    """Returns when the stream has begun: a reload that changes nothing is an event that each listener gets."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        instance.reload()
        if select.select([control.sock], [], [], 0.1)[0]:
            control.until("reloaded")
            return
    raise AssertionError("the stream does not begin")


def connect(path: Path) -> Client:
    """A client whose device decodes its memory."""
    client = Client.connect(path, timeout=PATIENCE)
    client.write(RegionIndex.CONFIG, COMMAND, b"\x06\x00")
    return client


def write(client: Client, offset: int, value: int, *, posted: bool = False) -> None:
    client.write(0, offset, value.to_bytes(4, "little"), posted=posted)


def read(client: Client, offset: int) -> int:
    return int.from_bytes(client.read(0, offset, 4), "little")


def open_files(pid: int) -> dict[int, str]:
    """What a process has open, by descriptor, as links name it; not what it closes meanwhile."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[int(link.name)] = os.readlink(link)
    return found


def over(pid: int) -> bool:
    """Whether a process has ended, waited for; a zombie has."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], PATIENCE)[0])
    finally:
        os.close(handle)


def eventually(condition: Any) -> bool:
    """For what nobody tells of: look until it is so, or a deadline has passed."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return True
        os.sched_yield()
    return False
