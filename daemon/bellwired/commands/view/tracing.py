"""The view's trace: records on their way from the thread that reads them to the screen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from bellwire.filters.observing.record import Record
from bellwired.errors import CommandError

MOST = 200
"""Records that are shown of one look at the ring; nobody can read more."""


class Ended(CommandError):
    """The user has ended the trace."""


class Sink:
    """Takes records from a thread, and hands them to ``show``, until :meth:`end`."""

    def __init__(self, show: Callable[[Sequence[Record]], None]) -> None:
        self._show = show
        self._over = threading.Event()

    def end(self) -> None:
        """No more records are wanted."""
        self._over.set()

    def print(self, records: Iterator[tuple[int, Record]], after: int = 0) -> int:
        """Hand records on. Raises Ended after :meth:`end`."""
        if self._over.is_set():
            raise Ended("the trace has been ended")
        found = list(records)
        if found:
            self._show([record for _, record in found[-MOST:]])
        return found[-1][0] if found else after
