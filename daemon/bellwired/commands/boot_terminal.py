"""The terminal of ``bellwire boot``: a shell in the guest, or one command, beside the devices' log."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bellwire_vmm.board.keyboard import Escape, raw
from bellwired import terminal
from bellwired.commands.console_file import console_file
from bellwired.guest.channel import Running
from bellwired.guest.console import Listener
from bellwired.guest.errors import CommandTimeout, MachineError, MachineGone
from bellwired.guest.machine import Machine

SHELLS = "command -v bash >/dev/null && exec bash --norc -i; exec sh -i"
"""The user's own .bashrc is left out: what it starts takes long in a machine that is emulated."""
PROMPT = {"PS1": r"\h:\w\$ "}
PIECE = 1 << 14
LONG = 20.0  # seconds without a word
ENDING = 5.0  # seconds for a killed command to end
STANDARD_ERROR = Path("-")
FINISHED = b"reboot: "
"""What the kernel prints when it powers off or starts again."""


class Screen:
    """Standard error, for lines from several threads. Lines that others have chosen control no terminal."""

    def __init__(self) -> None:
        self.raw = False
        """Whether the terminal is raw: a line then ends with a carriage return too."""
        self._lock = threading.Lock()

    def log(self, name: str, text: str) -> None:
        """A line of a device's log."""
        self.note(f"{name}: {text}")

    def note(self, text: str) -> None:
        """A line."""
        ends = ("\r", "\r\n") if self.raw else ("", "\n")
        with self._lock, contextlib.suppress(OSError):
            _write(sys.stderr.fileno(), f"{ends[0]}{terminal.line(text)}{ends[1]}".encode(errors="replace"))

    @contextlib.contextmanager
    def patience(self, text: str) -> Iterator[None]:
        """Note ``text`` if the block takes long."""
        timer = threading.Timer(LONG, self.note, [text])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def console(self, path: Path | None) -> Iterator[Listener | None]:
        """What takes the guest's console, if it goes to a file or to standard error."""
        if path is None:
            yield None
        elif path == STANDARD_ERROR:
            yield _Lines(self.note).take
        else:
            with console_file(path, self.note) as take:
                yield take


class _Lines:
    """Makes lines of bytes."""

    def __init__(self, take_line: Callable[[str], None]) -> None:
        self._take_line = take_line
        self._held = b""

    def take(self, data: bytes) -> None:
        *lines, self._held = (self._held + data).replace(b"\r", b"").split(b"\n")
        if len(self._held) > PIECE:
            lines, self._held = [*lines, self._held], b""
        for line in lines:
            self._take_line(line.decode(errors="replace"))


def converse(machine: Machine, screen: Screen, words: Sequence[str], timeout: float | None) -> int:
    """Run the command in the guest, or a shell. Its status, as a shell has it.

    Raises a CommandTimeout, or a MachineError if the guest fails.
    """
    if not words and os.isatty(0) and os.isatty(1):
        return _shell(machine, screen, timeout)
    running = machine.begin(words or ["sh"], _to(1), _to(2))
    with _typed(running, lambda: None):
        return _status(machine, running, timeout, words)


def _shell(machine: Machine, screen: Screen, timeout: float | None) -> int:
    """A shell on this terminal."""
    screen.note("a shell in the guest: exit ends it, and so does Ctrl-] three times within a second")
    size = os.get_terminal_size(0)
    running = machine.begin(["sh", "-c", SHELLS], _to(1), _to(1), size=(size.lines, size.columns), environment=PROMPT)

    def resized(*_: object) -> None:
        size = os.get_terminal_size(0)
        running.resize(size.lines, size.columns)

    before = signal.signal(signal.SIGWINCH, resized)
    try:
        with raw(0), _raw(screen), _typed(running, running.kill):
            return _status(machine, running, timeout, ["the shell"])
    except MachineGone:
        if FINISHED in machine.console.data:
            return 0
        raise
    finally:
        signal.signal(signal.SIGWINCH, before)


def _status(machine: Machine, running: Running, timeout: float | None, words: Sequence[str]) -> int:
    status = running.wait(timeout)
    if status is None:
        running.kill()
        if running.wait(ENDING) is None:
            raise MachineError("the guest hangs: it does not end its command", console=machine.console.tail())
        raise CommandTimeout(f"{' '.join(words)}: not ended after {timeout:g} s", console=machine.console.tail())
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def _raw(screen: Screen) -> Iterator[None]:
    screen.raw = True
    try:
        yield
    finally:
        screen.raw = False


@contextlib.contextmanager
def _typed(running: Running, leave: Callable[[], None]) -> Iterator[None]:
    """Pass standard input on while the block lasts. ``leave`` is called for Ctrl-] three times within a second."""
    stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    thread = threading.Thread(target=_pass_on, args=(running, stop, leave), name="keyboard", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.eventfd_write(stop, 1)
        thread.join(ENDING)
        os.close(stop)


def _pass_on(running: Running, stop: int, leave: Callable[[], None]) -> None:
    escape = Escape() if os.isatty(0) else None
    poll = select.poll()
    with contextlib.suppress(MachineError, OSError):
        poll.register(stop, select.POLLIN)
        poll.register(0, select.POLLIN)
        while not any(fd == stop for fd, _ in poll.poll()):
            data = os.read(0, PIECE)
            if not data:
                running.end_input()
                return
            if escape and escape.seen(data, time.monotonic()):
                leave()
                return
            running.feed(data)


def _to(fd: int) -> Callable[[bytes], None]:
    """A sink that writes to a descriptor; when nobody reads that any more, the rest is dropped."""

    def take(data: bytes) -> None:
        with contextlib.suppress(OSError):
            _write(fd, data)

    return take


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
