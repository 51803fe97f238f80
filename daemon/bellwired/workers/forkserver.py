"""The fork server: warm, with one thread and no plugin's code, so that forking a worker is cheap and clean.

It is the workers' parent and reaps them. It dies with the manager, and they die with it.
``python -m bellwired.workers.forkserver FD PARENT`` runs it.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable

from bellwired import terminal
from bellwired.box import library, privileges
from bellwired.find import bundled, entry_points
from bellwired.logs import DATE, to_stderr_or_journal
from bellwired.workers import process, wire
from bellwired.workers.wire import Answer, Ask, Exited, Spawn, Spawned, WireError
from bellwired.workers.worker import run_device


class ForkServer:
    """The server. Serves the manager at the other end of ``sock`` until that closes."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._workers: dict[int, int] = {}  # pidfd -> pid

    def run(self) -> Callable[[], int] | None:
        """Fork a worker. Returns what to run in the child, and None in the server."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._workers:
                    self._reap(fd)
                    continue
                try:
                    received = wire.receive(self._sock)
                except WireError as error:
                    logging.getLogger("bellwired").error("the fork server was asked for nonsense: %s", error)
                    continue
                if received is None:
                    return None
                message, fds = received
                if isinstance(message, Ask):
                    stopped = message.what == "stopped" and process.is_stopped(int(message.arguments["pid"]))
                    wire.send(self._sock, Answer(message.number, stopped))
                elif isinstance(message, Spawn):
                    child = self._spawn(message, fds)
                    if child is not None:
                        return child

    def _spawn(self, message: Spawn, fds: list[int]) -> Callable[[], int] | None:
        parent = os.getpid()
        pid = 0
        try:
            if len(fds) < (1 if message.trial else 2):
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            pid = os.fork()
            if pid == 0:
                self._sock.close()  # and with that there is room for what comes next
                privileges.die_with_parent(parent)
                process.close_all_but(*fds)
                return lambda: run_device(message, parent, *fds)
            handle = os.pidfd_open(pid)
        except OSError as error:
            if pid:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            wire.send(self._sock, Spawned(message.number, 0, error.strerror or str(error)))
        else:
            self._workers[handle] = pid
            self._poll.register(handle, select.POLLIN)
            wire.send(self._sock, Spawned(message.number, pid), [handle])
        wire.close(fds)
        return None

    def _reap(self, handle: int) -> None:
        pid = self._workers.pop(handle)
        self._poll.unregister(handle)
        os.close(handle)
        _, status = os.waitpid(pid, 0)
        process.kill_orphans(self._workers.values())
        wire.send(self._sock, Exited(pid, os.waitstatus_to_exitcode(status)))


def serve(fd: int, parent: int) -> int:
    """Serve the manager ``parent`` at the other end of the socket ``fd``, which it closes. Its status as a process."""
    privileges.die_with_parent(parent)
    process.name("bellwire-fork")
    process.adopt_orphans()
    privileges.hide_memory()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # signals to the whole process group are for the manager
    terminal.guard()  # for what plugins print
    to_stderr_or_journal("info", clock=DATE, threaded=False)
    library.rules()
    bundled()  # these modules change with the daemon only: workers share their pages
    entry_points()
    gc.freeze()  # a collection in a worker must not touch the shared pages
    gc.enable()
    with socket.socket(fileno=fd) as sock:
        try:
            child = ForkServer(sock).run()
        except (BrokenPipeError, ConnectionResetError):
            return 0  # the manager has gone
    return 0 if child is None else child()


if __name__ == "__main__":
    process.end(serve(*map(int, sys.argv[1:])))
