"""Sends the log to the journal, with fields of its own, under systemd; elsewhere, as text, to stderr."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from bellwired.sinks import Journal, Prefixed, Sink, Stream
from bellwired.terminal import Formatter
from bellwired.unblocked import Unblocked

PLAIN = "%(levelname)s %(name)s: %(message)s"
TIMED = "%(asctime)s.%(msecs)03d"
TIME, DATE = "%H:%M:%S", "%Y-%m-%d %H:%M:%S"


def to_stderr_or_journal(level: str, *, device: str = "", clock: str = "", threaded: bool = True) -> None:
    """Set up logging for this process. A second call replaces the first. Every record names ``device``.

    With ``clock`` a record on stderr begins with the time in this format, to the millisecond. Without ``threaded`` the
    process may fork (see :class:`Unblocked`).
    """
    try:
        fd = sys.stderr.fileno()
        handler = _unblocked(fd, device, clock, threaded)
    except (OSError, ValueError, AttributeError):  # no file is behind sys.stderr
        handler = logging.StreamHandler()
        handler.setFormatter(_formatter(device, clock))
    if handler not in logging.root.handlers:
        logging.basicConfig(handlers=[handler], force=True)
    logging.root.setLevel(level.upper())


def hush_asyncvarlink() -> None:
    """Drop the long message about a caller that has hung up: the daemon handles that itself."""
    logging.getLogger("asyncvarlink").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "coroutine method 'aclose'", RuntimeWarning)


def _unblocked(fd: int, device: str, clock: str, threaded: bool) -> logging.Handler:
    """The present handler if it does what is asked for: its queue then stays. Otherwise a new one."""
    status = os.fstat(fd)
    name = f"{os.getpid()} {status.st_dev}:{status.st_ino} {device} {clock} {threaded}"
    for handler in logging.root.handlers:
        if handler.name == name:
            return handler
    sink: Sink = _journal(fd, device) if _is_the_journal(status) else Stream(fd)
    handler = Unblocked(sink, threaded=threaded)
    handler.name = name
    journal = isinstance(sink, Journal | Prefixed)  # it adds the time itself
    handler.setFormatter(_Named(device, "%(message)s") if journal else _formatter(device, clock))
    return handler


class _Named(Formatter):
    """Names the device in each record that does not name it itself."""

    def __init__(self, device: str, fmt: str) -> None:
        super().__init__(fmt)
        self._prefix = f"[{device}] " if device else ""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if hasattr(record, "BELLWIRE_DEVICE") else self._prefix + text


def _formatter(device: str, clock: str) -> Formatter:
    words = [TIMED] if clock else []
    words += [f"[{device}]"] if device else []
    return Formatter(" ".join([*words, PLAIN]), clock or None)


def stderr_is_the_journal() -> bool:
    """Whether the log goes to the journal."""
    try:
        return _is_the_journal(os.fstat(sys.stderr.fileno()))
    except (OSError, ValueError, AttributeError):  # no file is behind sys.stderr
        return False


def _is_the_journal(status: os.stat_result) -> bool:
    """As systemd.exec(5) says of JOURNAL_STREAM: the device and inode number of the stream."""
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _journal(fd: int, device: str) -> Sink:
    fields = {"SYSLOG_IDENTIFIER": "bellwired"} | ({"BELLWIRE_DEVICE": device} if device else {})
    try:
        return Journal(fields)
    except OSError:  # no journal listens where this process can see it
        return Prefixed(fd)
