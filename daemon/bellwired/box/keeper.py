"""The process beside ``bellwire run`` that does what the device's process, in its box, may not.

It answers the calls that the box refuses, with a line on standard error for each kind, and removes sockets at the end:
the box lets the device make no changes in folders. It is forked before the box closes, and ends with the device.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

from bellwired.box.refusals import Refusals
from bellwired.box.remains import remove_made

END = 2.0  # seconds: it only removes sockets
BOTH = 0.2  # seconds: the kernel ends a process with its parent
CLOSED = 1.0  # seconds, on a busy machine: the kernel closes what a process that has been killed had open


class Keeper:
    """Forks the process. Make it before any thread is started."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            try:
                self._sock.close()
                _keep(theirs)
            finally:
                os._exit(0)
        theirs.close()

    def take(self, listener: int, made: Sequence[str], sockets: Sequence[str], parent: int = 0) -> None:
        """Hand over the listener of a box, which is closed here, and the paths of sockets that are to be removed.

        ``made`` are removed in any case, ``sockets`` only if the process ``parent``, if there is one, has ended then.
        """
        fds = [listener] if listener >= 0 else []
        socket.send_fds(self._sock, [json.dumps([list(made), list(sockets), parent]).encode()], fds)
        for fd in fds:
            os.close(fd)

    def end(self) -> None:
        """Have it remove the sockets, and end. Close them first."""
        self._sock.shutdown(socket.SHUT_WR)
        self._sock.settimeout(END)
        with contextlib.suppress(OSError):
            self._sock.recv(1)
        self._sock.close()


def _keep(sock: socket.socket) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all of its processes
    os.chdir("/")
    os.closerange(3, sock.fileno())
    os.closerange(sock.fileno() + 1, 1 << 16)
    data, fds, _, _ = socket.recv_fds(sock, 1 << 16, 1)
    if not data:
        return
    made, sockets, parent = json.loads(data)
    handle, served = os.pidfd_open(parent) if parent else -1, os.pidfd_open(os.getppid())
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    refusals = Refusals(fds[0] if fds else -1, _tell)
    if fds:
        poll.register(fds[0], select.POLLIN)
    while all(fd != sock.fileno() for fd, _ in poll.poll()):
        if not refusals.answer():
            poll.unregister(fds[0])
    if parent and not select.select([handle], [], [], BOTH)[0]:
        sockets = []
    for path in map(Path, (*made, *sockets)):
        try:
            remove_made(path)
        except OSError:  # a process that was killed closes its sockets one after the other
            select.select([served], [], [], CLOSED)
            with contextlib.suppress(OSError):
                remove_made(path)


def _tell(call: str, word: str) -> None:
    text = f"WARNING bellwire: the box refuses {call}; --no-sandbox runs the device without a box"
    with contextlib.suppress(OSError):
        os.write(2, f'{text} (sandbox = ["{word}"] in the file of a daemon\'s device)\n'.encode())
