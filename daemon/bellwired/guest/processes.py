"""Processes that a machine is made of. They end with it, and when this process or the thread that started them ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence

from bellwired.guest.errors import MachineError
from bellwired.signals import signal_name

PATIENCE = 10.0  # seconds for a process to end by itself


def start(
    words: Sequence[str],
    *,
    fds: Iterable[int] = (),
    environment: Mapping[str, str] | None = None,
    output: int = subprocess.DEVNULL,
    errors: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own, so that Ctrl-C at a terminal does not reach it.

    It inherits ``fds``. The kernel kills it when the thread that started it ends. Raises a MachineError.
    """
    setpriv = shutil.which("setpriv")  # of util-linux
    prefix = [setpriv, "--pdeathsig=KILL", "--"] if setpriv else []
    try:
        return subprocess.Popen(
            [*prefix, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            pass_fds=tuple(fds),
            env=None if environment is None else dict(environment),
            process_group=0,
        )
    except OSError as error:
        raise MachineError(f"{words[0]} does not start: {error.strerror}") from None


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM, patience: float = PATIENCE) -> int:
    """End a process, by SIGKILL if it takes longer than ``patience``. Its exit status."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
    return wait(process, patience)


def wait(process: subprocess.Popen[bytes], patience: float = PATIENCE) -> int:
    """Wait for a process that has got its signal: a second one may end it at once. Its exit status."""
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return process.returncode


def ending(status: int) -> str:
    """How a process ended, in words; ``status`` as :mod:`subprocess` has it."""
    return f"was ended by {signal_name(-status)}" if status < 0 else f"has ended with status {status}"
