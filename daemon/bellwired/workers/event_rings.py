"""The event rings of a device's own trace: what happened last is there even after its worker has died."""

from __future__ import annotations

import os

from bellwired.errors import CommandError


class EventRings:
    """Keeps the ring of the present worker, and that of the last one that has ended. It reads neither of them."""

    def __init__(self) -> None:
        self._present = -1
        self._last = -1

    def keep(self, ring: int) -> None:
        """Keep a ring of the present worker; the descriptor is ours now."""
        self._close(self._present)
        self._present = ring

    def worker_ended(self) -> None:
        """The ring of the present worker is the last one's now, if there was one."""
        if self._present >= 0:
            self._close(self._last)
            self._last, self._present = self._present, -1

    def last(self) -> int:
        """A duplicate of the ring of the last worker that has ended. A CommandError if there is none."""
        if self._last < 0:
            raise CommandError("no worker of it has ended that had a filter trace")
        return os.dup(self._last)

    def close(self) -> None:
        """Keep nothing any more."""
        for ring in (self._present, self._last):
            self._close(ring)
        self._present = self._last = -1

    def _close(self, ring: int) -> None:
        if ring >= 0:
            os.close(ring)
