"""A worker that is killed at a chosen line of our code, and its successors: the whole of a hand-over without a daemon.

The client runs a script in a process of its own. The worker and its successors are forked, one after the other. In the
first, each line that runs in the packages ``vfio_user`` and ``bellwire`` is a fault point, and it kills itself at one.
"""

from __future__ import annotations

import json
import linecache
import logging
import mmap
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import bellwire
import vfio_user
from bellwire import PciDevice
from bellwire.filters import Filter
from bellwire.serve.worker import Worker
from bellwired.manager.holder import Holder
from bellwired.workers import wire
from bellwired.workers.ledger import ManagersLedger, inherit
from bellwired.workers.wire import Drop, Keep
from vfio_user import Client, TimedOut

PATIENCE = 15.0  # seconds for a script, on a busy machine; each line of the worker is counted
OURS = tuple(str(Path(package.__file__ or "").parent) for package in (vfio_user, bellwire))
Script = Callable[[Client], Any]
Make = Callable[[], PciDevice]
Filters = Callable[[], list[Filter]]


class Making(NamedTuple):
    """How each worker makes its device, and what stands before it."""

    device: Make
    filters: Filters


class Outcome:
    """What the client has seen, and how many lines the first worker has run."""

    def __init__(self, seen: Any, lines: int, killed: str) -> None:
        self.seen = seen
        """What the script has returned; None if it has waited for a reply in vain."""
        self.lines = lines
        self.killed = killed
        """The line that the worker was about to run when it was killed; empty if it was not."""


def play(script: Script, device: Make, fault: int | None = None, filters: Filters = list) -> Outcome:
    """Run ``script`` against ``device``, whose worker dies at the line number ``fault`` of those that it runs.

    ``filters`` stand before the device. What the script returns is sent as JSON.
    """
    make = Making(device, filters)
    ours, theirs = socket.socketpair()
    seen, tell_seen = os.pipe()
    note = os.memfd_create("note")
    player = _fork(lambda: _play(script, theirs, tell_seen), keep=(theirs.fileno(), tell_seen))
    theirs.close()
    os.close(tell_seen)
    holder = Holder("it")
    deadline = time.monotonic() + PATIENCE
    worker, channel = _start(make, ours, None, fault, note)
    ours.close()
    try:
        while True:
            ready, _, _ = select.select([seen, channel.fileno()], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the client is not done in time"
            if channel.fileno() in ready and not _hear(channel, holder):
                os.waitpid(worker, 0)
                worker = 0
                if not holder.holds:  # the client has left
                    break
                worker, channel = _start(make, None, holder, None, note)
            elif seen in ready:
                break
        text = b"".join(iter(lambda: os.read(seen, 1 << 16), b""))
    finally:
        for pid in filter(None, (worker, player)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        channel.close()
        holder.close()
        os.close(seen)
    with open(note, "rb") as notes:
        killed = os.pread(notes.fileno(), 1 << 12, 8).rstrip(b"\0").decode()
        lines = int.from_bytes(os.pread(notes.fileno(), 8, 0), "little")
    return Outcome(json.loads(text or "null"), lines, killed)


def _play(script: Script, sock: socket.socket, tell: int) -> None:
    with suppress(TimedOut), Client(sock, timeout=PATIENCE / 3) as client:
        seen = script(client)
        with open(tell, "w") as file:
            json.dump(seen, file)


def _start(
    make: Making, connection: socket.socket | None, holder: Holder | None, fault: int | None, note: int
) -> tuple[int, socket.socket]:
    """Fork a worker, which serves ``connection`` or what ``holder`` has."""
    mine, its = wire.pair()
    if holder is not None:
        for message, fds in holder.bequest():
            wire.send(mine, message, fds)
    keep = (its.fileno(), note, *([connection.fileno()] if connection else []))
    worker = _fork(lambda: _work(make, its, connection, fault, note), keep=keep)
    its.close()
    return worker, mine


def _work(make: Making, channel: socket.socket, connection: socket.socket | None, fault: int | None, note: int) -> None:
    channel.setblocking(False)
    estate = inherit(channel) if connection is None else None
    ledger = ManagersLedger(channel)
    worker = Worker(make.device(), connection=connection, ledger=ledger, estate=estate, filters=make.filters())
    worker.run(None if connection is None else lambda: _count(fault, note))


def _count(fault: int | None, note: int) -> None:
    """Count lines from now on; end at the one with the number ``fault``."""
    lines = 0
    os.ftruncate(note, 4096)
    count = memoryview(mmap.mmap(note, 4096)).cast("Q")

    def line(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if event == "call":
            return line if frame.f_code.co_filename.startswith(OURS) else None
        if event == "line":
            lines += 1
            count[0] = lines
            if lines == fault:
                at = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
                os.pwrite(note, at.encode(), 8)
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    sys.settrace(line)


def _hear(channel: socket.socket, holder: Holder) -> bool:
    """Take a message of the worker's. False if it has ended."""
    received = wire.receive(channel)
    if received is None:
        channel.close()
        return False
    message, fds = received
    if isinstance(message, Keep | Drop):
        holder.heard(message, fds)
    return True


def _fork(work: Callable[[], None], keep: tuple[int, ...]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        # pytest's own streams would write to numbers that other files get when theirs are closed.
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))
        logging.root.handlers = []
        for name in os.listdir("/proc/self/fd"):
            fd = int(name)
            if fd > 2 and fd not in keep:
                with suppress(OSError):
                    os.close(fd)
        work()
        status = 0
    except BaseException:  # noqa: BLE001 this process has nobody else to tell
        traceback.print_exc()
    finally:
        os._exit(status)
