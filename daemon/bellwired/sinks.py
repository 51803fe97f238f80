"""Where the log goes: a stream, or the journal in its native protocol. No write waits for the reader."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

JOURNAL = Path("/run/systemd/journal/socket")
_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class Stream:
    """The pipe, terminal, socket or file behind the descriptor ``fd``, which stays its owner's.

    Other processes share the open file, so it cannot be made non-blocking. A pipe or a terminal is opened once more. If
    that is forbidden, as for a terminal of another user, a write comes after a poll, and is short.
    """

    def __init__(self, fd: int) -> None:
        self._fd, self._own, self._polls = fd, False, False
        self._sock: socket.socket | None = None
        kind = os.fstat(fd).st_mode
        if stat.S_ISSOCK(kind):
            self._sock = socket.socket(fileno=os.dup(fd))
        elif not stat.S_ISREG(kind):
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._fd, self._own = os.open(f"/proc/self/fd/{fd}", flags), True
            except OSError:
                self._polls = True

    def encode(self, record: logging.LogRecord, text: str) -> bytes:
        """One line, or several with a traceback."""
        return f"{text}\n".encode(errors="backslashreplace")

    def write(self, data: memoryview) -> int:
        """Write what there is room for. Returns the number of bytes; BlockingIOError if there is no room."""
        if self._sock is not None:
            return self._sock.send(data, socket.MSG_DONTWAIT)
        if self._polls:
            if not self.wait(0):
                raise BlockingIOError
            data = data[: select.PIPE_BUF]
        return os.write(self._fd, data)

    def wait(self, seconds: float | None) -> bool:
        """Wait until there may be room. False if there is none in time."""
        return _writable(self._fd if self._sock is None else self._sock.fileno(), seconds)

    def close(self, *, inherited: bool = False) -> None:
        """Release it. ``inherited``: in a child that has closed all its descriptors."""
        if self._sock is not None:
            self._sock.detach() if inherited else self._sock.close()
        elif self._own and not inherited:
            os.close(self._fd)


class Prefixed(Stream):
    """The journal's stream. It takes the priority from a prefix of each line (sd-daemon(3)), and no fields."""

    def encode(self, record: logging.LogRecord, text: str) -> bytes:
        """Every line with its priority."""
        prefix = f"<{_PRIORITY.get(record.levelname, 6)}>"
        return super().encode(record, "\n".join(prefix + line for line in text.splitlines()))


class Journal:
    """The journal in its native protocol (systemd's JOURNAL_NATIVE_PROTOCOL), with ``fields`` in every entry.

    Raises an OSError if no journal listens at ``path``.
    """

    def __init__(self, fields: Mapping[str, str], path: Path = JOURNAL) -> None:
        self._fields = dict(fields)
        self._path = str(path)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._sock.connect(self._path)
        except OSError:
            self._sock.close()
            raise

    def encode(self, record: logging.LogRecord, text: str) -> bytes:
        """One entry. An attribute of the record whose name is in capitals (from ``extra=``) is a field too."""
        fields = self._fields | {
            "MESSAGE": text,
            "PRIORITY": str(_PRIORITY.get(record.levelname, 6)),
            "LOGGER": record.name,
            "THREAD_NAME": str(record.threadName),
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName,
        }
        fields |= {key: str(value) for key, value in vars(record).items() if key.isupper()}
        return b"".join(map(_field, fields, fields.values()))

    def write(self, data: memoryview) -> int:
        """Send one entry. Returns its size; BlockingIOError if the journal's queue is full."""
        try:
            return self._sock.send(data)
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOTCONN):
                raise
        self._sock.connect(self._path)  # it has been started anew
        return self._sock.send(data)

    def wait(self, seconds: float | None) -> bool:
        """Wait until there may be room. False if there is none in time."""
        return _writable(self._sock.fileno(), seconds)

    def close(self, *, inherited: bool = False) -> None:
        """Release it. ``inherited``: in a child that has closed all its descriptors."""
        self._sock.detach() if inherited else self._sock.close()


Sink = Stream | Journal


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" in data:
        return b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data)
    return b"%s=%s\n" % (name.encode(), data)


def _writable(fd: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    with contextlib.suppress(OSError):
        return bool(poll.poll(None if seconds is None else max(0, seconds * 1000)))
    return True  # the write will say what is wrong
