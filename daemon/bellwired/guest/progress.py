"""How far long work has come, as it is shown to people."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

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


class Bar:
    """A line with a bar, which changes, for terminals."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def step(self, text: str) -> None:
        """Begin a new bar below the finished ones."""
        self._end()
        self._task = self._bars.add_task(terminal.line(text), total=None)

    def share(self, done: float) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=1.0)

    def _end(self) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=1.0, total=1.0)
            self._bars.stop_task(self._task)


silent = Silent()


@contextlib.contextmanager
def shown() -> Iterator[Progress]:
    """Progress on standard error: bars on a terminal, and plain lines otherwise."""
    if not sys.stderr.isatty():
        yield Lines(sys.stderr)
        return
    columns = (SpinnerColumn(finished_text=" "), TextColumn("{task.description}", markup=False))
    console = Console(file=terminal.raw(sys.stderr))
    with Bars(*columns, BarColumn(), TimeElapsedColumn(), console=console, transient=True) as bars:
        yield Bar(bars)
