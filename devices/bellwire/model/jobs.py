"""Work that blocks, done elsewhere, and its results in batches.

``background`` is for a job now and then. A disk has thousands a second, so here a job costs one queue operation
each way, and results that pile up while the loop is busy come in one call: one wake-up, one interrupt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Job:
    """``work(*arguments)`` to be done on another thread; ``tag`` is for whoever asks for it.

    When it has been done, ``error`` is what it raised, or None.
    """

    __slots__ = ("arguments", "error", "tag", "work")

    def __init__(self, work: Callable[..., object], *arguments: Any, tag: Any = None) -> None:
        self.work = work
        self.arguments = arguments
        self.tag = tag
        self.error: Exception | None = None

    def run(self) -> None:
        """Do it, here and now."""
        try:
            self.work(*self.arguments)
        except Exception as error:  # noqa: BLE001 a thread has nobody to raise to: whoever asked looks at it
            self.error = error
        except SystemExit as error:
            self.error = RuntimeError(f"the job called exit: {error}")


Done = Callable[[list[Job]], None]


class Pool(Protocol):
    """What :meth:`bellwire.PciDevice.pool` returns. For the device's own thread only."""

    def submit(self, job: Job) -> None:
        """Have ``job`` run; it will be in a list that ``done`` gets."""

    def finish(self) -> None:
        """Wait for all; ``done`` is told as ever, when the device's thread has time."""

    def settle(self) -> None:
        """Drop what has not begun, wait for what has, and forget the results: nothing is under way any more."""

    def close(self) -> None:
        """Settle, and end the threads."""
