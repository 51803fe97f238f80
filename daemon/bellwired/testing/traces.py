"""What a device says while it runs in a test: its log, and its trace where the test wants one."""

from __future__ import annotations

import logging
from collections import deque
from types import TracebackType
from typing import Self

MOST = 10_000  # lines that are kept of a test
_FORM = logging.Formatter("%(asctime)s.%(msecs)03d %(message)s", "%H:%M:%S")


class Trace:
    """Keeps the last lines that devices called ``name`` have logged, as long as it is in a ``with`` block.

    A device that is made in the block, and with ``detail``, logs each access, ring, hook, DMA and interrupt. Handlers
    get no more lines than without a trace, so these lines are not in pytest's own log.
    """

    def __init__(self, name: str, *, detail: bool) -> None:
        self._logger = logging.getLogger(f"bellwire.device.{name}")
        self._detail = detail
        self._lines: deque[str] = deque(maxlen=MOST)
        self._dropped = 0

    def __enter__(self) -> Self:
        traces, _ = _OPEN.setdefault(self._logger, ([], self._logger.level))
        if not traces:
            self._logger.addFilter(_hear)
        traces.append(self)
        if self._detail:
            self._logger.setLevel(logging.DEBUG)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        traces, level = _OPEN[self._logger]
        traces.remove(self)
        if not traces:
            self._logger.removeFilter(_hear)
            self._logger.setLevel(level)
            del _OPEN[self._logger]

    def add(self, record: logging.LogRecord) -> None:
        """Keep a line. The device's threads call it."""
        self._dropped += len(self._lines) == MOST
        self._lines.append(_FORM.format(record))

    def clear(self) -> None:
        """Forget the lines of the test before."""
        self._lines.clear()
        self._dropped = 0

    def last(self, most: int) -> str:
        """The last lines, at most ``most`` of them."""
        lines = list(self._lines)
        left_out = max(0, len(lines) - most) + self._dropped
        return "\n".join(
            [*([f"({left_out} lines before these)"] if left_out else []), *lines[max(0, len(lines) - most) :]]
        )


_OPEN: dict[logging.Logger, tuple[list[Trace], int]] = {}
"""The traces of each logger, and its level before them."""


def _hear(record: logging.LogRecord) -> bool:
    """A filter of a logger: give the record to its traces. False if nobody else would have got it."""
    logger = logging.getLogger(record.name)
    for trace in _OPEN[logger][0]:
        trace.add(record)
    return logger.parent is None or logger.parent.isEnabledFor(record.levelno)
