"""Sends the log to the journal, with fields of its own, under systemd; elsewhere, as text, to stderr."""

from __future__ import annotations

import logging
import os
import sys
import warnings

PLAIN = "%(levelname)s %(name)s: %(message)s"
TIMED, TIME = "%(asctime)s.%(msecs)03d", "%H:%M:%S"
_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


def to_stderr_or_journal(level: str, *, device: str = "", clock: bool = False) -> None:
    """Set up logging for this process. A second call replaces the first. Every record names ``device``.

    With ``clock`` a record on stderr begins with the time, to the millisecond.
    """
    handler = _journal(device) if _stderr_is_the_journal() else None
    if handler is None:
        handler = logging.StreamHandler()
        plain = f"[{device}] {PLAIN}" if device else PLAIN
        handler.setFormatter(logging.Formatter(f"{TIMED} {plain}" if clock else plain, TIME))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def hush_asyncvarlink() -> None:
    """Drop the long message about a caller that has hung up: the daemon handles that itself."""
    logging.getLogger("asyncvarlink").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "coroutine method 'aclose'", RuntimeWarning)


def _stderr_is_the_journal() -> bool:
    """As systemd.exec(5) says of JOURNAL_STREAM: the device and inode number of the stream."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _journal(device: str) -> logging.Handler | None:
    fields = {"SYSLOG_IDENTIFIER": "bellwired"} | ({"BELLWIRE_DEVICE": device} if device else {})
    try:
        from systemd.journal import JournalHandler
    except ImportError:
        handler: logging.Handler = logging.StreamHandler()
        handler.setFormatter(_Prefixed(f"[{device}] %(message)s" if device else "%(message)s"))
        return handler
    handler = JournalHandler(**fields)
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


class _Prefixed(logging.Formatter):
    """Without systemd-python the journal still takes the priority from a prefix (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(f"<{_PRIORITY[record.levelname]}>{line}" for line in super().format(record).splitlines())
