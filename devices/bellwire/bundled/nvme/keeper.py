"""Saves the store: before the host sees a command that changes it complete, and soon after any other change."""

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
        """Write the store now. Raises OSError."""
        if self._store.folder is None:
            self._remember()
        else:
            write_down(self._store, self._controller.namespaces)
            self._store.write(*self._store.encode())

    def _remember(self) -> None:
        write_down(self._store, self._controller.namespaces)
        self._store.remember()

    def save_soon(self) -> None:
        """Let a thread write the store. If a write is under way, another one follows. Memory needs no thread."""
        if self._store.folder is None:
            try:
                self._remember()
            except OSError as error:
                self._warn(error)
            return
        self._unsaved = True
        if not self._saving:
            self._saving, self._unsaved = True, False
            write_down(self._store, self._controller.namespaces)
            self._controller.engine.background(Job(self._store.write, *self._store.encode()), self._saved)

    def forgotten(self) -> None:
        """The threads have dropped their jobs: start the write again."""
        self._saving = False

    def close(self) -> None:
        """Write the store for the last time, and close it."""
        if self._store.folder is not None:
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
        self._controller.device.warn("store %s: %s", self._store.folder or "in memory", error)
