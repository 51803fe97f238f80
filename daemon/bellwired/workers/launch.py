"""Launches the fork server: as a new process, or as a fork of a daemon that has not loaded the rest of itself yet."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import traceback
from typing import NamedTuple, NoReturn

from bellwired.workers import process


class Forked:
    """A child that was forked, with what its owner needs of a :class:`subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def kill(self) -> None:
        """SIGKILL, unless it has been waited for."""
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its status as subprocess has it, once it has ended."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status


class ForkServer(NamedTuple):
    """A fork server, and the socket to it. The caller owns both."""

    process: subprocess.Popen[bytes] | Forked
    sock: socket.socket


def fork_server() -> ForkServer:
    """Start a fork server, which ends with this thread. Raises an OSError if that fails."""
    ours, theirs = _ends()
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


def forked() -> ForkServer:
    """Like :func:`fork_server`, forked off this process: what that has loaded need not be loaded again.

    This process must have one thread only. In the child, its descriptors are closed.
    """
    parent = os.getpid()
    ours, theirs = _ends()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _serve(theirs.detach(), parent)
    theirs.close()
    return ForkServer(Forked(pid), ours)


def _ends() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def _serve(fd: int, parent: int) -> NoReturn:
    """Become the process that :func:`fork_server` starts."""
    status = 1
    try:
        os.setsid()
        process.close_all_but(fd)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        for name in process.MANAGERS_OWN:
            os.environ.pop(name, None)
        if not sys.flags.safe_path:
            del sys.path[0]  # the folder of the script, or the current one
        from bellwired.workers.forkserver import serve

        status = serve(fd, parent)
    except BaseException:  # noqa: BLE001 the boundary of the process
        traceback.print_exc()
    finally:
        process.end(status)
