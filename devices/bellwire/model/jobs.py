"""Jobs: blocking work on other threads, with results in batches.

``background`` is for a job now and then. A disk has thousands of jobs a second. So a job here costs one queue operation
each way. Results that gather while the loop is busy arrive in one call, with one wake-up and one interrupt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Job:
    """A call ``work(*arguments)`` for another thread. ``tag`` belongs to the device code that submits it.

    When it has run, ``error`` is what it raised, or None.
    """

    __slots__ = ("arguments", "error", "tag", "work")

    def __init__(self, work: Callable[..., object], *arguments: Any, tag: Any = None) -> None:
        self.work = work
        self.arguments = arguments
        self.tag = tag
        self.error: Exception | None = None

    def run(self) -> None:
        """Run the work on this thread, and keep what it raises in ``error``."""
        try:
            self.work(*self.arguments)
        except Exception as error:  # noqa: BLE001 a thread has no caller: the code that submitted the job looks at it
            self.error = error
        except SystemExit as error:
            self.error = RuntimeError(f"the job called exit: {error}")


Done = Callable[[list[Job]], None]


class Pool(Protocol):
    """Threads for jobs. Made by :meth:`bellwire.PciDevice.pool`; only the device's own thread may call it."""

    def submit(self, *jobs: Job) -> None:
        """Run ``jobs`` on one thread, one after the other. ``done`` gets them, in a list, when all have finished.

        Waking a thread up takes about 10 µs, so submit short jobs together, and each long one by itself.
        """

    @property
    def busy(self) -> bool:
        """Whether there are jobs that ``done`` has not got yet."""

    def finish(self) -> bool:
        """Wait for all jobs. Returns whether ``done`` has still to get some, from the loop.

        Their descriptor can be read then: before guest memory goes, the SDK does not wait for the loop's next turn.
        """

    def settle(self) -> None:
        """Drop the jobs that have not begun, wait for the others, and forget their results. No job is left then."""

    def close(self) -> None:
        """Settle, then end the threads."""
