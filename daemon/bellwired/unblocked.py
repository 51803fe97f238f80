"""A log handler that never waits for the reader of the log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque

from bellwired.sinks import Sink

MOST = 1 << 17  # bytes that wait for the reader; lines beyond that are lost
LONGEST = 1 << 14  # characters of a record, with its traceback
FLUSH = 1.0  # seconds at the end of the process for a reader that is slow


class Unblocked(logging.Handler):
    """Writes records to ``sink``, in order.

    A record is written at once if there is room, so the last words of a process that is killed are in the log. Without
    room it waits in a queue, and a thread writes the queue as the reader goes on; the thread ends with the queue. When
    the queue is full, records are lost. The next line that finds room says how many.

    Without ``threaded``, only the next record moves the queue on: a process that forks must have no other thread.
    """

    def __init__(self, sink: Sink, *, threaded: bool = True) -> None:
        super().__init__()
        self.lost = 0
        """All lines that were lost."""
        self._sink = sink
        self._threaded = threaded
        self._pid = os.getpid()
        self._guard = threading.RLock()  # a signal handler may log while its thread does
        self._queue: deque[memoryview] = deque()
        self._size = 0
        self._untold = 0
        self._draining = False
        self._writer: threading.Thread | None = None

    @property
    def inherited(self) -> bool:
        """Whether it was made by the process from which this one was forked."""
        return os.getpid() != self._pid

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or queue it. Never waits."""
        try:
            data = self._encode(record)
        except Exception:  # noqa: BLE001 a mistake in a call, often a device's
            data = self._encode(_unusable(record))
        with self._guard:
            if self._writer is None:
                self._drain()
            if self._size + len(data) > MOST:
                self.lost += 1
                self._untold += 1
                return
            self._append(data)
            if self._writer is None:
                self._drain()
                if self._queue and self._threaded:
                    self._start()

    def flush(self) -> None:
        """Wait for the reader, at most ``FLUSH`` seconds. For the end of the process."""
        end = time.monotonic() + FLUSH
        while self._queue and not self.inherited and self._sink.wait(end - time.monotonic()):
            with self._guard:
                self._drain()

    def close(self) -> None:
        """Release the descriptor. What still waits is lost."""
        super().close()
        with self._guard:
            self._queue.clear()
            self._sink.close(inherited=self.inherited)

    def _encode(self, record: logging.LogRecord) -> bytes:
        text = self.format(record)
        if len(text) > LONGEST:
            text = f"{text[:LONGEST]}... ({len(text) - LONGEST} more characters)"
        return self._sink.encode(record, text)

    def _append(self, data: bytes) -> None:
        """Queue a line, after a word about those that were lost before it."""
        if self._untold:
            count, self._untold = self._untold, 0
            self._put(self._encode(_line("%d lines of the log were lost: its reader was too slow", count)))
        self._put(data)

    def _put(self, data: bytes) -> None:
        size = len(data)
        self._queue.append(memoryview(data))
        self._size += size  # no call in this statement: a signal handler that logs may run at any call

    def _drain(self) -> None:
        """Write as much of the queue as there is room for.

        A signal handler may log in the middle of this, on the same thread. Its record waits for the loop below.
        """
        if self._draining:
            return
        self._draining = True
        try:
            self._write_what_fits()
        finally:
            self._draining = False

    def _write_what_fits(self) -> None:
        while self._queue:
            data = self._queue[0]
            try:
                count = self._sink.write(data)
            except BlockingIOError:
                return
            except OSError:  # the reader has gone
                self.lost += 1
                count = len(data)
            self._queue.popleft()
            self._size -= count
            if count < len(data):
                self._queue.appendleft(data[count:])
            if not self._queue and self._untold:
                count, self._untold = self._untold, 0
                self._put(self._encode(_line("%d lines of the log were lost: its reader was too slow", count)))

    def _start(self) -> None:
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        try:
            self._writer.start()
        except RuntimeError:  # no more threads are allowed: the next record tries again
            self._writer = None

    def _write(self) -> None:
        """Write the queue as its reader goes on."""
        while True:
            self._sink.wait(None)
            with self._guard:
                self._drain()
                if not self._queue:
                    self._writer = None
                    return


class Flood(logging.Filter):
    """Passes ``most`` records a second, and counts the others: one device must not fill the log of all."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._second = self._passed = self._held = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is within the limit. The first one after a flood comes behind a word about it."""
        if int(record.created) != self._second:
            self._second, self._passed = int(record.created), 0
            held, self._held = self._held, 0
            if held:
                logging.getLogger("bellwire.worker").warning("%d lines were too many, and are not in the log", held)
        self._passed += 1
        self._held += self._passed > self._most
        return self._passed <= self._most


def lost() -> int:
    """The lines of the log that this process has lost."""
    return sum(handler.lost for handler in logging.root.handlers if isinstance(handler, Unblocked))


def _line(text: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("bellwired", logging.WARNING, __file__, 0, text, arguments, None)


def _unusable(record: logging.LogRecord) -> logging.LogRecord:
    """In place of a record whose text cannot be made."""
    what = "?"
    with contextlib.suppress(Exception):  # its repr may be what fails
        what = f"{record.msg!r} with {record.args!r}"
    line = _line("%s:%d: a line for the log cannot be made of %s", record.pathname, record.lineno, what)
    line.exc_info = sys.exc_info()
    return line
