"""Launches the fork server. This module imports little, so that a daemon can do it before it loads itself."""

from __future__ import annotations

import os
import socket
import subprocess
from typing import NamedTuple

from bellwired.workers import process


class ForkServer(NamedTuple):
    """A fork server, and the socket to it. The caller owns both."""

    process: subprocess.Popen[bytes]
    sock: socket.socket


def fork_server() -> ForkServer:
    """Start a fork server, which ends with this thread. Raises an OSError if that fails."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    words = [*process.python(), "-m", "bellwired.workers.forkserver", str(theirs.fileno()), str(os.getpid())]
    try:
        with theirs:
            server = subprocess.Popen(
                words,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=process.environment(),
                start_new_session=True,
            )
    except OSError:
        ours.close()
        raise
    return ForkServer(server, ours)
