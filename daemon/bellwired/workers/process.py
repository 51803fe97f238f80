"""Linux's calls for a process: parent, name, descriptors, limits, memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Collection
from typing import NamedTuple, NoReturn

_libc = ctypes.CDLL(None, use_errno=True)
_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
MANAGERS_OWN = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
"""Variables that the service manager sets for the manager only."""


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent has ended."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process by SIGTERM when ``parent``, which has forked it, ends (PR_SET_PDEATHSIG)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it has ended meanwhile
        os.kill(os.getpid(), signal.SIGTERM)


def end(status: int) -> NoReturn:
    """End this process without the interpreter's cleanup, which touches all of its memory and takes long.

    What the standard streams and log handlers have buffered is written.
    """
    import logging  # here: a daemon that starts launches its fork server first

    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader has left, or it is closed
            stream.flush()
    os._exit(status)


def kill_orphans(others: Collection[int]) -> None:
    """Kill the children of this process that are not among ``others``: what ended workers have left behind."""
    with contextlib.suppress(OSError):  # a kernel without CONFIG_PROC_CHILDREN
        with open(f"/proc/self/task/{os.getpid()}/children") as list_of_children:
            orphans = set(map(int, list_of_children.read().split())) - set(others)
        for pid in orphans:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the child ``pid`` of this process (SIGSTOP and the like)."""
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    return False


def name(text: str) -> None:
    """Set the name that ``ps`` shows: its first 15 bytes."""
    _libc.prctl(_PR_SET_NAME, text.encode()[:15], 0, 0, 0)


def close_all_but(*kept: int) -> None:
    """Close every descriptor from 3 on, except those that are named."""
    for fd in list(map(int, os.listdir("/proc/self/fd"))):
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):  # listdir's own
                os.close(fd)


def allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one: three or four for each device, more than 1024 in all."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it: then the present limit stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def python() -> list[str]:
    """The command that starts this Python again, as isolated as this one, and without the current folder in its path.

    ``-I`` would also ignore PYTHONPATH and the user's own site-packages, which may be where Bellwire is installed.
    """
    return [sys.executable, "-I" if sys.flags.isolated else "-P"]


def environment() -> dict[str, str]:
    """This process's environment, without what is the manager's own."""
    return {key: value for key, value in os.environ.items() if key not in MANAGERS_OWN}


def memory(pid: int, count: int = -1) -> int:
    """A process's proportional set size (PSS) in bytes; 0 if the process has gone.

    ``count`` is its smaps_rollup, open: needed for a process that hides its memory.
    """
    try:
        with open(count if count >= 0 else f"/proc/{pid}/smaps_rollup", "rb", closefd=count < 0) as lines:
            for line in os.pread(lines.fileno(), 4096, 0).splitlines():
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


class Usage(NamedTuple):
    """What a process has used of CPU time, in seconds, and uses of memory, in bytes, and of descriptors."""

    seconds: float
    resident: int
    descriptors: int


def usage(pid: int) -> Usage | None:
    """The usage of a process, by proc(5); None if it has gone. Cheap: no page table is walked."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            times = file.read().rpartition(")")[2].split()[11:13]
        with open(f"/proc/{pid}/statm") as file:
            pages = int(file.read().split()[1])
        count = os.stat(f"/proc/{pid}/fd").st_size  # the number of descriptors since Linux 6.2, 0 before
    except OSError:
        return None
    return Usage(sum(map(int, times)) / _TICKS, pages * resource.getpagesize(), count)
