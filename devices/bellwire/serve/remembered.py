"""A ledger that remembers in this process what it is told, so that newer code can go on with the client here."""

from __future__ import annotations

import os
from collections.abc import Iterator

from vfio_user import Estate, Kept, Ledger


class Remembered(Ledger):
    """Keeps duplicates of all descriptors, and tells ``other`` too, if there is one.

    It begins with what ``estate`` has, of which the other ledger knows.
    """

    def __init__(self, other: Ledger | None = None, estate: Estate | None = None) -> None:
        self._other = other or Ledger()
        self._entries: dict[str, Kept] = {}
        for entry in estate or ():
            self._entries[entry.key] = entry._replace(fds=tuple(map(os.dup, entry.fds)))

    def __iter__(self) -> Iterator[Kept]:
        return iter(list(self._entries.values()))

    def keep(self, *entries: Kept) -> None:
        """Keep entries."""
        self._other.keep(*entries)
        for entry in entries:
            mine = entry._replace(fds=tuple(map(os.dup, entry.fds)))
            self._forget(entry.key)
            self._entries[entry.key] = mine

    def drop(self, *keys: str) -> None:
        """Forget entries."""
        self._other.drop(*keys)
        for key in keys:
            self._forget(key)

    def clear(self) -> None:
        """Forget everything."""
        self._other.clear()
        self.close()

    def close(self) -> None:
        """Forget everything, and do not tell the other ledger."""
        for key in list(self._entries):
            self._forget(key)

    def estate(self) -> Estate:
        """All that is kept, with duplicates of the descriptors."""
        entries = self._entries.items()
        return Estate({key: entry._replace(fds=tuple(map(os.dup, entry.fds))) for key, entry in entries})

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        for fd in entry.fds if entry is not None else ():
            os.close(fd)
