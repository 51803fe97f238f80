"""A device in a process of its own, for as long as a ``with`` block lasts."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator

from bellwired.errors import CommandError
from bellwired.workers import process

PATIENCE = 20.0  # seconds for the process to end after its client has gone


@contextlib.contextmanager
def device_process(name: str, *options: str) -> Iterator[socket.socket]:
    """Run ``bellwire run NAME`` and yield a socket to it, which the caller (or its client) closes.

    The process ends when that socket closes; one that does not is killed.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        command = [
            *process.python(),
            "-m",
            "bellwired",
            "--log-level",
            "warning",
            "run",
            name,
            "--fd",
            str(theirs.fileno()),
            "--no-restart",
        ]
        for option in options:
            command += ["-o", option]
        running = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # where the demo's own report goes
            start_new_session=True,
        )
    try:
        yield ours
    finally:
        ours.close()
        try:
            status = running.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            running.kill()
            status = running.wait()
        if status:  # this is the cause of any other error here
            raise CommandError(f"the process of the device {name} ended with status {status}", "see its messages above")
