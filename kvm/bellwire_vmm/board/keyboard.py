"""Keys from a terminal to the guest's serial port, and the escape keys that end the machine."""

from __future__ import annotations

import contextlib
import os
import select
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator

from bellwire_vmm.board.uart import Uart

ESCAPE = 0x1D
"""Ctrl-]"""

TIMES, WITHIN = 3, 1.0  # seconds
_CHUNK = 256


class Escape:
    """Notices Ctrl-] three times within a second. The guest gets these keys too."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def seen(self, data: bytes, now: float) -> bool:
        """Whether ``data``, typed at ``now`` (in seconds), completes the escape."""
        for byte in data:
            self._times = [*self._times[1 - TIMES :], now] if byte == ESCAPE else []
            if len(self._times) == TIMES and now - self._times[0] <= WITHIN:
                return True
        return False


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """A context in which a terminal passes on every key. Restores it afterwards. Leaves other files alone."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class Keyboard:
    """Reads ``fd`` on a thread, until its end or `close`. Calls ``leave`` when the escape is typed."""

    def __init__(self, fd: int, uart: Uart, leave: Callable[[], None]) -> None:
        self._fd = fd
        self._uart = uart
        self._leave = leave
        self._escape = Escape()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._serve, name="keyboard")
        self._thread.start()

    def close(self) -> None:
        """End the thread, and the input of the serial port."""
        os.eventfd_write(self._stop, 1)
        self._uart.close()
        self._thread.join()
        os.close(self._stop)

    def _serve(self) -> None:
        waiter = select.poll()
        waiter.register(self._fd, select.POLLIN)
        waiter.register(self._stop, select.POLLIN)
        while not any(fd == self._stop for fd, _ in waiter.poll()):
            try:
                data = os.read(self._fd, _CHUNK)
            except OSError:
                return  # the terminal is gone
            if not data:
                return
            if self._escape.seen(data, time.monotonic()):
                self._leave()
                return
            if not self._uart.receive(data):
                return
