"""A job whose end changes the controller: its store, its namespaces, or their blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bellwire import Job


class Task(Job):
    """``ended(error)`` runs on the device's thread when the job has ended, even if the host no longer waits for it.

    It returns the result of the command, or raises a CommandError or an OSError. If the job had an error, the command
    fails, and the result is ignored. With ``alone`` the job begins when no I/O command is under way;
    :meth:`Namespaces.hold` keeps new ones from beginning.
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
