"""How far long work has come, as it is shown to people."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol, TextIO

from bellwired import terminal


class Progress(Protocol):
    """What long work tells of itself."""

    def step(self, text: str) -> None:
        """A new step begins."""

    def share(self, done: float) -> None:
        """So much of the step is done, from 0 to 1."""


class Silent:
    """Shows nothing."""

    def step(self, text: str) -> None:
        """Nothing is shown."""

    def share(self, done: float) -> None:
        """Nothing is shown."""


class Lines:
    """One line a step, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def step(self, text: str) -> None:
        """Write the line at once."""
        print(terminal.line(text), file=self._stream, flush=True)

    def share(self, done: float) -> None:
        """A line cannot grow, so nothing is shown."""


silent = Silent()


@contextlib.contextmanager
def shown() -> Iterator[Progress]:
    """Progress on standard error: bars on a terminal, and plain lines otherwise."""
    if not sys.stderr.isatty():
        yield Lines(sys.stderr)
        return
    from bellwired.guest.bars import bars  # only now: loading them takes as long as the rest of a short command

    with bars(sys.stderr) as found:
        yield found
