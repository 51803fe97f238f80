"""Running the ``bellwire`` command as users do, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

COMMAND = [sys.executable, "-m", "bellwired"]
PATIENCE = 60.0


def bellwire(*words: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """The command's status and what it printed."""
    return subprocess.run(
        [*COMMAND, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )


@contextlib.contextmanager
def started(*words: str, pass_fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    """The command running; it is ended with the block, if it has not ended by itself."""
    process = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=pass_fds
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def line(process: subprocess.Popen[str]) -> str:
    """The next line of its output, waited for."""
    assert process.stdout is not None
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        return process.stdout.readline()
    finally:
        watchdog.cancel()


def ended(process: subprocess.Popen[str], number: signal.Signals) -> int:
    """Its status after a signal."""
    process.send_signal(number)
    return process.wait(PATIENCE)


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def family(pid: int) -> list[int]:
    """``pid``, the processes that it has started, those that these have started, and so on."""
    return [pid, *(each for child in children(pid) for each in family(child))]


def first_child(pid: int) -> int:
    """The first process that ``pid`` starts, waited for."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := children(pid):
            return found[0]
    raise AssertionError(f"process {pid} has started none")


def innermost(pid: int, name: str = "") -> int:
    """The process that ``pid`` was started for: that with the ``name`` (comm), or the last of the chain below it."""
    while Path(f"/proc/{pid}/comm").read_text().strip() != name and (below := children(pid)):
        pid = below[0]
    return pid


def gone(pid: int) -> bool:
    """Whether a process has ended, waited for."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], PATIENCE)[0])
    finally:
        os.close(handle)
