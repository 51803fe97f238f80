"""What a worker says to the manager unasked: its log, and whatever else finds room in the socket."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket

from bellwired.workers import wire
from bellwired.workers.wire import Answer, Report

MOST_LINES = 100  # log lines that are sent to the manager in a second
LONGEST_LINE = 8192  # characters of a record, with its traceback, that are sent to the manager


class Relay(logging.Handler):
    """Sends log records to the manager, from any thread.

    What finds no room is in the log alone, and so are more than ``MOST_LINES`` a second: a device that logs all the
    time keeps only its own worker busy. The next line that is sent says how many were left out.
    """

    def __init__(self, channel: socket.socket) -> None:
        super().__init__()
        self._channel = channel
        self._second = 0
        self._passed = self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record, with its traceback."""
        if int(record.created) != self._second:
            self._second, self._passed = int(record.created), 0
        if self._passed >= MOST_LINES:
            self._lost += 1
            return
        self._passed += 1
        try:
            text = self.format(record)[:LONGEST_LINE]
        except Exception:  # noqa: BLE001 a mistake in the call: the log says so
            return
        if self._lost:
            text = f"({self._lost} lines before this one were too many) {text}"
        fields = {"time": record.created, "level": record.levelname.lower(), "text": text}
        with contextlib.suppress(OSError):  # the worker is about to end
            self._lost = 0 if say(self._channel, Report("log", fields)) else self._lost + 1


def say(channel: socket.socket, message: Answer | Report, fds: list[int] | None = None) -> bool:
    """Send a message. False if the socket is full, or if too many descriptors of the user's processes are under way.

    A manager that has gone is no error here: :meth:`run` handles it.
    """
    try:
        wire.send(channel, message, fds)
    except BlockingIOError:
        return False
    except (BrokenPipeError, ConnectionError):
        pass
    except OSError as error:
        if error.errno != errno.ETOOMANYREFS:
            raise
        return False
    return True
