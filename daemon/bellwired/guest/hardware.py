"""QEMU and the servers of its folders: the processes of a machine, and its console."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from bellwired.guest import board, folders, processes, roots
from bellwired.guest.board import Ends
from bellwired.guest.console import Console
from bellwired.guest.errors import MachineError, MachineGone
from bellwired.guest.folders import FIRST_SLOT, VIRTIOFS
from bellwired.guest.plan import Plan
from bellwired.guest.qmp import Qmp
from bellwired.guest.reports import Watcher

PIECE = 1 << 16
KEPT_ERRORS = 1 << 14
ENDING = 10.0  # seconds for QEMU to end once it has closed the channel, on a busy host
ENDED = "the guest has ended"


class Hardware:
    """A machine that is switched on. All that it has opened ends with :meth:`close`.

    A thread starts the processes, and copies the console until QEMU has ended. So it lives as long as they do, and the
    kernel ends them with it.
    """

    def __init__(self, plan: Plan) -> None:
        self.watcher = Watcher()
        self.console = Console((self.watcher.feed, *plan.listeners))
        self.folders = folders.offer(plan, roots.shares(plan))
        self._plan = plan
        self._processes: list[subprocess.Popen[bytes]] = []
        self._said = bytearray()
        self._closing = False
        self._started: Future[None] = Future()
        self.channel, theirs = socket.socketpair()
        console, their_console = socket.socketpair()
        control, their_control = socket.socketpair()
        self.control = Qmp(control)
        given = theirs, their_console, their_control
        self._thread = threading.Thread(target=self._run, args=(console, given), name="guest", daemon=True)
        self._thread.start()
        try:
            self._started.result()
        except BaseException:  # a signal, too
            self.close()
            self.channel.close()
            raise

    @property
    def said(self) -> str:
        """What QEMU and virtiofsd have printed."""
        return self._said.decode(errors="replace").strip()

    def why_lost(self, reason: str) -> MachineError:
        """The error for callers when the channel has ended."""
        if self._closing:
            return MachineGone("the guest was ended")
        if not reason:
            try:
                status = self._processes[0].wait(ENDING)
                reason = f"QEMU {processes.ending(status)}" if status else ENDED
            except subprocess.TimeoutExpired:
                reason = "the guest has closed its channel"
        self.console.wait_for_end(ENDING)  # all that QEMU said has come by then, too
        said = f": {self.said}" if self.said and reason != ENDED else ""
        return MachineGone(f"{reason}{said}", console=self.console.tail())

    def close(self) -> None:
        """Switch it off."""
        self._closing = True
        for process in self._processes:  # QEMU is the first
            processes.end(process)
        self._thread.join()
        self.control.close()

    def _run(self, console: socket.socket, given: Sequence[socket.socket]) -> None:
        reading, writing = os.pipe()
        problem = self._start(given, writing)
        os.close(writing)
        for each in given:
            each.close()
        if problem is None:
            self._started.set_result(None)
        else:
            self._started.set_exception(problem)
        with console:
            self._copy(console, reading)
        os.close(reading)
        self.console.end()

    def _start(self, given: Sequence[socket.socket], errors: int) -> Exception | None:
        try:
            self._start_all(given, errors)
        except OSError as error:
            return MachineError(f"the machine cannot be started: {error.filename or ''} {error.strerror}")
        except Exception as error:  # noqa: BLE001 __init__ waits for it, and raises it there
            return error
        return None

    def _start_all(self, given: Sequence[socket.socket], errors: int) -> None:
        with contextlib.ExitStack() as stack:
            words: list[str] = []
            fds: list[int] = []
            servers: list[tuple[list[str], int]] = []
            for slot, offered in enumerate(self.folders, FIRST_SLOT):
                if offered.kind == VIRTIOFS:
                    listener, client = folders.pair()
                    stack.callback(listener.close)
                    stack.callback(client.close)
                    fds.append(client.fileno())
                    servers.append((folders.virtiofsd_words(self._plan, offered, listener.fileno()), listener.fileno()))
                    words += folders.virtiofs_arguments(offered, slot, client.fileno())
                else:
                    words += folders.nine_p_arguments(offered, slot)
            initramfs = os.memfd_create("initramfs")
            stack.callback(os.close, initramfs)
            with open(initramfs, "wb", closefd=False) as file:
                file.write(roots.initramfs(self._plan))
            channel, its_console, control = (each.fileno() for each in given)
            qemu = board.command_line(self._plan, Ends(channel, its_console, control, initramfs), words)
            fds += [channel, its_console, control, initramfs]
            self._spawn(qemu, fds, errors)
            for line, fd in servers:
                self._spawn(line, [fd], errors)

    def _spawn(self, words: Sequence[str], fds: Sequence[int], errors: int) -> None:
        environment = self._plan.qemu.environment
        process = processes.start(words, fds=fds, environment=environment, output=errors, errors=errors)
        self._processes.append(process)

    def _copy(self, console: socket.socket, errors: int) -> None:
        """Copy until both have ended: QEMU and the servers have closed them then."""
        poll = select.poll()
        poll.register(console, select.POLLIN)
        poll.register(errors, select.POLLIN)
        left = 2
        while left:
            for fd, _ in poll.poll():
                try:
                    data = os.read(fd, PIECE)
                except OSError:
                    data = b""
                if not data:
                    poll.unregister(fd)
                    left -= 1
                elif fd == errors:
                    self._said += data
                    del self._said[:-KEPT_ERRORS]
                else:
                    self.console.feed(data)
