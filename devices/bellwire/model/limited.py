"""Logging at a limited rate, for messages that a guest can cause."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any

BURST = 5
MOST = 100
INTERVAL = 10.0  # seconds
KEYS = 256
Details = tuple[type[BaseException], BaseException, TracebackType | None] | None
_ALL = object()
_NUMBER = re.compile(r"\d[\da-fx]*")


def shape(error: BaseException) -> str:
    """The kind of an error: its text without numbers. A guest or a client has chosen most of the numbers."""
    return _NUMBER.sub("#", str(error))


class LimitedLog:
    """A logger that passes ``BURST`` records of each kind in ``INTERVAL`` seconds, and counts the others.

    A guest may be able to cause many kinds of warnings, so all kinds together have a limit too: ``MOST`` records.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self.logger = logger
        self.tell: Callable[[str], object] = str
        """Called with every message that is logged."""
        self._clock = clock
        self._kinds: dict[Hashable, tuple[float, int]] = {}

    def warning(self, kind: Hashable, message: str, *arguments: Any) -> None:
        """Log a warning, unless this ``kind`` has reached its limit."""
        if self.admits(kind) and self.admits(_ALL, MOST):
            self._log(logging.WARNING, message % arguments)

    def error(self, message: str, *arguments: Any) -> None:
        """Log an error that no guest can cause, and that is rare."""
        self._log(logging.ERROR, message % arguments)

    def failure(self, kind: Hashable, error: BaseException, message: str, *arguments: Any) -> None:
        """Log an error: with its traceback the first time, and as one line after that."""
        first = kind not in self._kinds
        if self.admits(kind):
            details: Details = (type(error), error, error.__traceback__) if first else None
            self._log(logging.ERROR, message % arguments, details)

    def admits(self, kind: Hashable, most: int = BURST) -> bool:
        """Whether one more record of this ``kind`` is within the limit. It is counted in any case."""
        now = self._clock()
        since, count = self._kinds.pop(kind, (now, 0))
        if now - since >= INTERVAL:
            if count > most:
                self.logger.warning("%d more like the last were not logged", count - most)
            since, count = now, 0
        if len(self._kinds) >= KEYS:  # forget the oldest
            del self._kinds[next(iter(self._kinds))]
        self._kinds[kind] = (since, count + 1)
        return count < most

    def _log(self, level: int, text: str, details: Details = None) -> None:
        """Log a text that is made already: whoever keeps the record does not keep the device that an argument names."""
        self.logger.log(level, "%s", text, exc_info=details)
        self.tell(text)
