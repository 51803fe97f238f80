"""Progress as bars on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from bellwired import terminal


class Bar:
    """A line with a bar, which changes, for terminals."""

    def __init__(self, bars: Progress) -> None:
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


@contextlib.contextmanager
def bars(stream: TextIO) -> Iterator[Bar]:
    """A bar for each step on a terminal. They go when the block ends."""
    columns = (SpinnerColumn(finished_text=" "), TextColumn("{task.description}", markup=False))
    console = Console(file=terminal.raw(stream))
    with Progress(*columns, BarColumn(), TimeElapsedColumn(), console=console, transient=True) as shown:
        yield Bar(shown)
