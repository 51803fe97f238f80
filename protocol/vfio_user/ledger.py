"""The ledger: what a server's process has set up for a client, told to whoever outlives that process.

A session tells its ledger of each change before it sends the reply that acknowledges the change. So whatever the client
has been promised is known to the ledger, at whatever moment the process ends. A successor gets all of it back as an
:class:`Estate`, and goes on with the same client (:meth:`vfio_user.Session.take_over`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Kept(NamedTuple):
    """An entry: ``note`` is for the successor alone. The fds stay the teller's; the ledger has duplicates."""

    key: str
    note: Mapping[str, Any]
    fds: tuple[int, ...] = ()


class Ledger:
    """A ledger that keeps nothing: the client leaves when the process ends. Override all methods.

    What an object of this very class would be told of maps and interrupts is not even described: that takes time.
    """

    def keep(self, *entries: Kept) -> None:
        """Keep entries. Each replaces the one with its key."""

    def drop(self, *keys: str) -> None:
        """Forget the entries with these keys, and close their descriptors."""

    def clear(self) -> None:
        """Forget everything: the client leaves."""


class Estate:
    """What a ledger has kept of a process that has ended, in the order of its entries. It owns the descriptors.

    ``hung``: the process hung, so what it was at is not to be done again. ``older``: older code goes on than that which
    the process ran.
    """

    def __init__(self, entries: Mapping[str, Kept] | None = None, *, hung: bool = False) -> None:
        self._entries = dict(entries or {})
        self.hung = hung
        self.older = False

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Kept]:
        return iter(list(self._entries.values()))

    def note(self, key: str) -> Mapping[str, Any]:
        """The note of an entry; empty if there is none with this key."""
        entry = self._entries.get(key)
        return {} if entry is None else entry.note

    def fds(self, key: str) -> tuple[int, ...]:
        """The descriptors of an entry, which stay the estate's. Empty if there is no such entry."""
        entry = self._entries.get(key)
        return () if entry is None else entry.fds

    def take(self, key: str) -> tuple[int, ...]:
        """The descriptors of an entry, which the caller owns from now on. Empty if there is no such entry."""
        entry = self._entries.pop(key, None)
        return () if entry is None else entry.fds

    def below(self, kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Key and note of each entry whose key begins with the word ``kind``."""
        for key, entry in list(self._entries.items()):
            if key.partition(" ")[0] == kind:
                yield key, entry.note

    def close(self) -> None:
        """Close the descriptors that nobody has taken."""
        for entry in self._entries.values():
            for fd in entry.fds:
                os.close(fd)
        self._entries.clear()
