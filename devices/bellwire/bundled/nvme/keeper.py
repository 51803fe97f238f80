"""When the store is written: before the host is told of what it has changed, and soon after all else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bellwire import Job
from bellwire.bundled.nvme.inventory import write_down

if TYPE_CHECKING:
    from bellwire.bundled.nvme.controller import Controller


class Keeper:
    """Writes the store of ``controller``. One write is under way in the background at a time."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._store = controller.store
        self._saving = self._unsaved = False

    def save(self) -> None:
        """Write it now. An OSError where that fails."""
        write_down(self._store, self._controller.namespaces)
        self._store.write(*self._store.encode())

    def save_soon(self) -> None:
        """Have a thread write it, again if one is at it."""
        self._unsaved = self._store.folder is not None
        if self._unsaved and not self._saving:
            self._saving, self._unsaved = True, False
            write_down(self._store, self._controller.namespaces)
            self._controller.engine.background(Job(self._store.write, *self._store.encode()), self._saved)

    def forgotten(self) -> None:
        """What threads had to do has been forgotten."""
        self._saving = False

    def close(self) -> None:
        """Write it for the last time, and give it back."""
        try:
            self.save()
        except OSError as error:
            self._warn(error)
        self._store.close()

    def _saved(self, job: Job) -> None:
        self._saving = False
        if job.error is not None:
            self._warn(job.error)
        elif self._unsaved:
            self.save_soon()

    def _warn(self, error: Exception) -> None:
        self._controller.device.warn("store %s: %s", self._store.folder, error)
