"""Logging that a guest can cause, at a rate that it cannot choose."""

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
_ALL = object()
_NUMBER = re.compile(r"\d[\da-fx]*")


def shape(error: BaseException) -> str:
    """A kind for an error: its text without the numbers, most of which a guest or a client has chosen."""
    return _NUMBER.sub("#", str(error))


class LimitedLog:
    """A logger that passes ``BURST`` records of each kind in ``INTERVAL`` seconds and counts the others.

    A guest may make up kinds of warnings: of all kinds together, it passes ``MOST``.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self.logger = logger
        self.tell: Callable[[str], object] = str
        """Hears every message that is logged."""
        self._clock = clock
        self._kinds: dict[Hashable, tuple[float, int]] = {}

    def warning(self, kind: Hashable, message: str, *arguments: Any) -> None:
        """Log a warning, if records of this ``kind`` have not been too many."""
        if self.admits(kind) and self.admits(_ALL, MOST):
            self.logger.warning(message, *arguments)
            self.tell(message % arguments)

    def failure(self, kind: Hashable, error: BaseException, message: str, *arguments: Any) -> None:
        """Log an error: its traceback the first time, a line after that."""
        first = kind not in self._kinds
        if self.admits(kind):
            details: tuple[type[BaseException], BaseException, TracebackType | None] | None = (
                (type(error), error, error.__traceback__) if first else None
            )
            self.logger.error(message, *arguments, exc_info=details)
            self.tell(message % arguments)

    def admits(self, kind: Hashable, most: int = BURST) -> bool:
        """Whether there is room for one more of this ``kind``, which is counted either way."""
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
