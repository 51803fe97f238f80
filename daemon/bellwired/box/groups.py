"""Control groups (Linux's Documentation/admin-guide/cgroup-v2.rst): one for each device, below the daemon's own.

systemd hands a unit with ``Delegate=`` the group of that unit, and marks it with an extended attribute. The daemon then
moves itself into a leaf of it, because a group whose controllers are passed on may have no process of its own. Without
the mark, nothing is touched: the group may be another program's too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bellwired.errors import CommandError

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("memory", "cpu", "pids")
MANAGER, DEVICE = "manager", "device-"
PERIOD = 100_000  # microseconds, as Linux has it by default
PATIENCE = 1.0  # seconds for the kernel to end what was killed
_MARKS = ("user.delegate", "trusted.delegate")


@dataclass(frozen=True)
class Limits:
    """What a device may use; 0 is no limit. ``memory`` is in bytes, ``cpu`` in percent of one processor."""

    memory: int = 0
    cpu: int = 0
    tasks: int = 0

    def files(self, controllers: Sequence[str]) -> dict[str, str]:
        """What to write to the files of a group that has these controllers."""
        written: dict[str, str] = {}
        if "memory" in controllers:
            written |= {"memory.max": str(self.memory or "max"), "memory.oom.group": "1"}
            written["memory.swap.max"] = "0" if self.memory else "max"
        if "cpu" in controllers:
            written["cpu.max"] = f"{self.cpu * PERIOD // 100 if self.cpu else 'max'} {PERIOD}"
        if "pids" in controllers:
            written["pids.max"] = str(self.tasks or "max")
        return written


class Groups:
    """The groups of the devices below ``base``; none if that is None, for the reason ``lack``."""

    def __init__(self, base: Path | None = None, controllers: Sequence[str] = (), lack: str = "") -> None:
        self.base = base
        self.controllers = tuple(controllers)
        self.lack = lack
        self._killed: dict[str, int] = {}

    def make(self, name: str, limits: Limits) -> str:
        """Make the group of the device ``name``, or set its limits anew; its folder, "" if there are no groups.

        Raises a CommandError if that fails.
        """
        if self.base is None:
            return ""
        group = self._of(name)
        try:
            group.mkdir(exist_ok=True)
            for file, text in limits.files(self.controllers).items():
                if file != "memory.swap.max" or (group / file).exists():  # a kernel without swap has no such file
                    _write(group / file, text)
            self._killed[name] = _out_of_memory(group)
        except OSError as error:
            hint = "a unit with Delegate= lets the daemon make it"
            raise CommandError(f"its control group cannot be made: {error.filename}: {error.strerror}", hint) from None
        return str(group)

    def out_of_memory(self, name: str) -> bool:
        """Whether the kernel has killed a process of the device for its memory since :meth:`make`."""
        return self.base is not None and _out_of_memory(self._of(name)) > self._killed.get(name, 0)

    def remove(self, name: str) -> bool:
        """Kill what is left in the group of a device, and remove it. False if a killed process still ends."""
        return self.base is None or _remove(self._of(name))

    def close(self) -> None:
        """Remove the groups of all devices."""
        if self.base is None:
            return
        deadline = time.monotonic() + PATIENCE
        for group in self.base.glob(f"{DEVICE}*/"):
            while not _remove(group) and time.monotonic() < deadline:
                time.sleep(0.005)

    def _of(self, name: str) -> Path:
        assert self.base is not None
        return self.base / f"{DEVICE}{name}"  # no file of the kernel's begins so


def take(root: Path = ROOT, *, child: int | None = None) -> Groups:
    """Move this process into a leaf of its own group, if that group is delegated to it, and pass its controllers on.

    A ``child`` that it has already is moved, too.
    """
    own = _own(root)
    if own is None:
        return Groups(lack="this system has no control groups of version 2")
    base = own.parent if own.name == MANAGER else own
    if not any(_marked(base, mark) for mark in _MARKS):
        return Groups(lack="systemd has not delegated the daemon's control group")
    try:
        there = (base / "cgroup.controllers").read_text().split()
        controllers = [each for each in CONTROLLERS if each in there]
        if not controllers:
            return Groups(lack="the daemon's control group has no controllers")
        leaf = base / MANAGER
        leaf.mkdir(exist_ok=True)
        _write(leaf / "cgroup.procs", "0")
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                _write(leaf / "cgroup.procs", str(child))
        _write(base / "cgroup.subtree_control", " ".join(f"+{each}" for each in controllers))
    except OSError as error:
        return Groups(lack=f"{error.filename}: {error.strerror}")
    return Groups(base, controllers)


def join(folder: str) -> None:
    """Move this process into a group. Raises an OSError if that fails."""
    _write(Path(folder, "cgroup.procs"), "0")


def _own(root: Path) -> Path | None:
    """The folder of this process's group."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/") and (root / "cgroup.controllers").exists():
                return root / line.removeprefix("0::/")
    return None


def _marked(group: Path, mark: str) -> bool:
    with contextlib.suppress(OSError):
        return os.getxattr(group, mark) == b"1"
    return False


def _write(file: Path, text: str) -> None:
    """Write at once: the kernel takes each write(2) as a whole. Never makes a file."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None
    finally:
        os.close(fd)


def _out_of_memory(group: Path) -> int:
    """How many processes the kernel has killed here for lack of memory."""
    with contextlib.suppress(OSError):
        for line in (group / "memory.events").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _remove(group: Path) -> bool:
    with contextlib.suppress(OSError):  # a kernel before 5.14: the fork server kills what is left
        _write(group / "cgroup.kill", "1")
    try:
        group.rmdir()
    except OSError as error:
        return error.errno != errno.EBUSY
    return True
