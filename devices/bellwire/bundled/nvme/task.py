"""A job whose end changes the controller: its store, its namespaces, or their blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bellwire import Job


class Task(Job):
    """``ended(error)`` runs on the device's thread when the job has ended, also if the host has gone on without it.

    It returns the command's result, or raises a CommandError or OSError. After an error the result counts for nothing:
    the command fails. ``alone``: the job begins once no I/O command is under way; :meth:`Namespaces.hold` keeps others
    from beginning.
    """

    __slots__ = ("alone", "ended")

    def __init__(
        self,
        work: Callable[..., object],
        *arguments: Any,
        ended: Callable[[Exception | None], int],
        alone: bool = False,
    ) -> None:
        super().__init__(work, *arguments)
        self.ended = ended
        self.alone = alone
