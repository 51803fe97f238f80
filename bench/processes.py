"""Runs devices and C programs in separate processes, each on a given CPU."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.build import program

PATIENCE = 20.0  # seconds to end once the far end has gone
PYTHON, C, ADAPTIVE = "Python", "C", "Python, busy poll"
BUSY_POLL = 200  # µs
BELLS = Path(__file__).parent / "bells.py"
TIMED, NOTED, POLLED = (f"{BELLS}:{kind}-bell" for kind in ("timed", "noted", "polled"))


def cpus() -> list[int]:
    """The CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0))


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """Bind this process, and its children, to one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Served(NamedTuple):
    """A device: the socket to it, and its process."""

    sock: socket.socket
    pid: int


@contextlib.contextmanager
def serving(
    subject: str, cpu: int, device: str = "bell", options: tuple[str, ...] = (), words: tuple[str, ...] = ()
) -> Iterator[Served]:
    """A device behind a socket: Bellwire's, or the C program's bell. It ends when the socket closes.

    ``words`` are more of ``bellwire run``'s.
    """
    ours, theirs = socket.socketpair()
    with theirs, ours:
        fd = theirs.fileno()
        if subject == C:
            command = [str(program("reference")), str(fd), *(["polled"] if device == POLLED else [])]
        else:
            command = [sys.executable, "-m", "bellwired", "--log-level", "error", "run", device, "--fd", str(fd)]
            command += ["--no-restart"]  # the process that is measured serves itself
            for option in options:
                command += ["-o", option]
            command += words
            if subject == ADAPTIVE:
                command += ["--busy-poll", str(BUSY_POLL)]
        with pinned(cpu):
            process = subprocess.Popen(command, pass_fds=[fd], stdin=subprocess.DEVNULL)
        theirs.close()
        try:
            yield Served(ours, process.pid)
        finally:
            ours.close()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def output(name: str, cpu: int | None, *arguments: str, fds: tuple[int, ...] = ()) -> bytes:
    """The output of the C program ``name``. Raises a subprocess.CalledProcessError if it fails."""
    with contextlib.nullcontext() if cpu is None else pinned(cpu):
        process = subprocess.Popen([str(program(name)), *arguments], pass_fds=fds, stdout=subprocess.PIPE)
    written, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, name)
    return written
