"""A real systemd to test in, booted in namespaces on a scratch copy of a root: this machine's own, or another.

It is the first process of its own mount, pid, network, UTS, IPC and cgroup namespaces: it cannot touch the host's
services, and everything in it ends with it. From outside its files are below ``bed.path("/")``, sockets included.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bed_venv
from daemon.commands import children, first_child

CHECKOUT = Path(__file__).parents[2]
BOOT = Path(__file__).with_name("boot.sh")
INIT = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "setpriv", "mount", "pivot_root", "journalctl", "systemctl")
SPACES = ("--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--propagation", "private")
LOG = "log"
PYTHON = "/srv/bellwire/venv/bin/python"  # inside
PREFIX = "bellwire-bed-"
PATIENCE = 60.0  # seconds
Entry = dict[str, Any]


class BootError(Exception):
    """The systemd under test did not come up."""


class Bed:
    """A booted systemd, whose first process is ``init`` to the host."""

    def __init__(self, init: int) -> None:
        self.init = init
        self._since: tuple[str, ...] = ()

    def path(self, inside: str | Path) -> Path:
        """Where a path of the inside is from outside."""
        return Path(f"/proc/{self.init}/root", *Path(inside).parts[1:])

    def run(self, *words: str, check: bool = True, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root."""
        done = subprocess.run(
            self.inside(words), capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def systemctl(self, *words: str, check: bool = True) -> str:
        """What ``systemctl`` says."""
        return self.run("systemctl", "--no-pager", *words, check=check).stdout

    def start(self, *units: str) -> None:
        """Start units, and wait until they are started; the journal tells why one is not."""
        done = self.run("systemctl", "start", *units, check=False)
        if done.returncode:
            log = "\n".join(str(entry["MESSAGE"]) for entry in self.journal())
            raise AssertionError(f"{done.stderr}\n{log}")

    def stop(self, *units: str) -> None:
        """Stop units, and wait until they are stopped."""
        self.systemctl("stop", *units)

    def show(self, unit: str, property_: str) -> str:
        """A unit's property."""
        return self.systemctl("show", "--value", f"--property={property_}", unit).strip()

    def unit(self, name: str, text: str) -> None:
        """Write a unit's file, or a drop-in of one (``name.service.d/x.conf``), and have it read."""
        path = self.path(f"/run/systemd/system/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.systemctl("daemon-reload")

    def journal(self, **matches: str) -> list[Entry]:
        """The journal's entries with these fields, as ``journalctl -o json`` has them."""
        self.run("journalctl", "--sync")
        return [json.loads(line) for line in self.run(*self._query(matches)).stdout.splitlines()]

    def forget(self) -> None:
        """Leave out of the journal all that is in it now."""
        last = int(self.journal()[-1]["__REALTIME_TIMESTAMP"])
        self._since = (f"--since=@{(last + 1) / 1e6:.6f}",)  # --after-cursor= skips one more where there are matches

    def heard(self, **matches: str) -> Entry:
        """The first entry with these fields, waited for."""
        words = self.inside([*self._query(matches), "--follow", "--lines=all"])
        with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as reader:
            assert reader.stdout is not None
            with reader.stdout:  # when that closes, journalctl ends
                if not select.select([reader.stdout], [], [], PATIENCE)[0]:
                    raise AssertionError(f"nothing in the journal has {matches}")
                entry: Entry = json.loads(reader.stdout.readline())
            return entry

    def install(self) -> None:
        """Put Bellwire's files where a package would, and do what it would then."""
        self.run(str(Path(PYTHON).with_name("bellwire")), "install", "--system", "--prefix=/usr")
        self.run("systemd-sysusers")
        self.run("systemd-tmpfiles", "--create", "bellwire.conf")
        self.run("journalctl", "--update-catalog")
        self.systemctl("daemon-reload")

    def _query(self, matches: dict[str, str]) -> list[str]:
        fields = (f"{key}={value}" for key, value in matches.items())
        return ["journalctl", "--quiet", "--no-pager", "--output=json", *self._since, *fields]

    def inside(self, words: Sequence[str]) -> list[str]:
        """The command that runs one inside."""
        clean = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG=C.UTF-8"]
        return ["nsenter", "--all", f"--target={self.init}", "--", *clean, *words]


@contextlib.contextmanager
def booted(root: Path | None = None) -> Iterator[Bed]:
    """Boot, and end it with the block, with every process and mount in it.

    On this machine's own root it has no network, and Bellwire's virtual environment for the tests. Another ``root`` has
    the host's network, to install from.
    """
    _sweep()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        stack.callback(shutil.rmtree, folder)
        cgroup = cgroup_root() / folder.name
        cgroup.mkdir()
        stack.callback(_remove_cgroup, cgroup)
        for name in ("root", "host"):
            (folder / name).mkdir()
        ready = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        ready.bind(os.fspath(folder / "host/ready"))
        process = stack.enter_context(_started(folder, cgroup, root))
        _await_ready(ready, process, folder / LOG)
        ready.close()  # systemd tells more, of each reload, and would wait for a reader
        yield Bed(first_child(process.pid))


def places(pid: int | None = None) -> list[Path]:
    """The folder and the cgroup of each bed that a process has, or all processes."""
    pattern = f"{PREFIX}{'*' if pid is None else pid}-*"
    return [path for root in (Path(tempfile.gettempdir()), cgroup_root()) for path in root.glob(pattern)]


def why_not() -> str:
    """What this machine lacks for a systemd in namespaces; empty where nothing is missing."""
    if os.geteuid() != 0:
        return "not root"
    if not INIT.exists():
        return f"no {INIT}"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"no {', '.join(missing)}"
    if reason := bed_venv.why_not():
        return reason
    mounts = "mount -t tmpfs trial /tmp && mknod /tmp/null c 1 3 && : > /tmp/null"
    trial = ["unshare", *SPACES, "--net", "--cgroup", "sh", "-c", mounts]
    done = subprocess.run(trial, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"no namespaces of one's own: {done.stderr.strip()}"
    try:
        root = cgroup_root()
    except BootError as error:
        return str(error)
    return "" if os.access(root, os.W_OK) else f"{root} is read-only"


def _sweep() -> None:
    """Remove what beds have left whose process was killed: the kernel has ended all in them."""
    for path in places():
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if not Path(f"/proc/{owner}").exists():
            remove = _remove_cgroup if path.parent == cgroup_root() else shutil.rmtree
            remove(path)


@contextlib.contextmanager
def _started(folder: Path, cgroup: Path, root: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """``boot.sh`` in its namespaces. All of it ends with this process too, even if that is killed."""
    own = (Path("/"), bed_venv.venv(CHECKOUT), CHECKOUT) if root is None else (root,)
    paths = map(str, (BOOT, folder, cgroup, *own))
    spaces = (*SPACES, "--net") if root is None else SPACES
    words: list[str] = ["setpriv", "--pdeathsig=KILL", "unshare", *spaces, "sh", *paths]
    with (
        (folder / LOG).open("wb") as log,
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            for pid in children(process.pid) or [process.pid]:
                os.kill(pid, signal.SIGKILL)  # with a namespace's first process go all others
            process.wait(PATIENCE)


def _await_ready(ready: socket.socket, process: subprocess.Popen[bytes], log: Path) -> None:
    """systemd tells a container's manager when it has reached its target, as services tell systemd."""
    deadline = time.monotonic() + PATIENCE
    ended = os.pidfd_open(process.pid)
    try:
        while (left := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([ready.fileno(), ended], [], [], left)
            if ready.fileno() in readable and b"READY=1" in ready.recv(4096).splitlines():
                return
            if ended in readable:
                raise BootError(f"systemd has ended:\n{log.read_text(errors='replace')}")
    finally:
        os.close(ended)
    raise BootError(f"systemd is not ready after {PATIENCE} s:\n{log.read_text(errors='replace')}")


def cgroup_root() -> Path:
    """Where the unified hierarchy is mounted, be it the only one or beside those of version 1."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise BootError("no cgroup2 is mounted")


def _remove_cgroup(cgroup: Path) -> None:
    """Remove it and those below, as soon as the last process has left."""
    deadline = time.monotonic() + PATIENCE
    with (cgroup / "cgroup.events").open("rb") as events:
        changed = select.poll()
        changed.register(events, select.POLLPRI)
        while b"populated 1" in events.read() and time.monotonic() < deadline:
            changed.poll(1000)
            events.seek(0)
    for folder, _, _ in os.walk(cgroup, topdown=False):
        os.rmdir(folder)
