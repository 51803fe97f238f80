"""A pool of threads without threads, for a test's guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bellwire.model.jobs import Done, Job

if TYPE_CHECKING:
    from bellwire.testing.guest import Guest


class AtOnce:
    """A pool without threads: a job runs in the call that submits it."""

    def __init__(self, guest: Guest[Any], done: Done) -> None:
        self._guest = guest
        self._done = done
        self._finished: list[Job] = []

    def submit(self, *jobs: Job) -> None:
        """Run ``jobs`` now. The next :meth:`Guest.advance` hands them over, with all others that have run by then."""
        for job in jobs:
            job.run()
        if not self._finished:
            self._guest.after(0, self._tell)
        self._finished += jobs

    @property
    def busy(self) -> bool:
        """Whether some jobs have not been handed over."""
        return bool(self._finished)

    def finish(self) -> bool:
        """All jobs have run already. Returns whether some have not been handed over."""
        return bool(self._finished)

    def settle(self) -> None:
        """Forget the jobs that have not been handed over."""
        self._finished.clear()

    def close(self) -> None:
        """Forget the jobs that have not been handed over. There are no threads to end."""
        self.settle()

    def _tell(self) -> None:
        finished, self._finished = self._finished, []
        if finished:
            self._done(finished)
