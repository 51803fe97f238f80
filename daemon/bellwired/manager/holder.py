"""What the worker of a device has set up for its client, held so that a successor can go on: notes and descriptors.

The notes and keys are the worker's. They are stored and given back, and nothing here reads a note. Device code can send
such messages, too: it can spoil what its own device has left, and nothing else.
"""

from __future__ import annotations

import logging

from bellwired.workers import wire
from bellwired.workers.wire import Drop, Inherit, Keep

MOST_FDS = 4096
"""Descriptors that are held for a device: more than 2048 vectors and their doorbells take."""
MOST_BYTES = 8 << 20
"""Bytes of keys and notes that are held for a device: more than 65535 maps take."""
BATCH = 256  # entries in a message

log = logging.getLogger("bellwired")


class Holder:
    """Holds the ledger of the device ``name`` while workers come and go."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._entries: dict[str, tuple[str, list[int]]] = {}
        self._fds = self._bytes = 0
        self.spoilt = ""
        """Why a successor cannot take over what is held: nothing is held then."""

    @property
    def holds(self) -> bool:
        """Whether a successor can go on with a client."""
        return bool(self._entries)

    @property
    def descriptors(self) -> int:
        """The number of descriptors that are held."""
        return self._fds

    def fds(self, key: str) -> list[int]:
        """The descriptors that a worker has kept under ``key``; they stay the holder's."""
        return self._entries[key][1] if key in self._entries else []

    def below(self, words: tuple[str, ...]) -> list[int]:
        """The descriptors of all keys that begin with one of ``words``; they stay the holder's."""
        return [fd for key, (_, fds) in self._entries.items() if key.startswith(words) for fd in fds]

    def entries(self) -> dict[str, tuple[str, list[int]]]:
        """All notes and descriptors, by key; the descriptors stay the holder's."""
        return dict(self._entries)

    def heard(self, message: Keep | Drop, fds: list[int]) -> None:
        """Take a change over. The descriptors are the holder's from now on."""
        if isinstance(message, Drop):
            wire.close(fds)
            self._drop(message.keys)
        elif self.spoilt:
            wire.close(fds)
        else:
            self._keep(message, fds)

    def bequest(self, *, poisoned: bool = False) -> list[tuple[Inherit, list[int]]]:
        """The messages that give a successor everything, with their descriptors. These stay the holder's."""
        messages = [(Inherit([], last=False), list[int]())]
        for key, (note, fds) in self._entries.items():
            message, together = messages[-1]
            if len(message.entries) == BATCH or len(together) + len(fds) > wire.MOST_FDS:
                messages.append((Inherit([], last=False), []))
                message, together = messages[-1]
            message.entries.append((key, note, len(fds)))
            together.extend(fds)
        messages[-1][0].last, messages[-1][0].poisoned = True, poisoned
        return messages

    def close(self) -> None:
        """Let everything go: the client is disconnected, if its worker has died."""
        self._drop([])

    def _keep(self, message: Keep, fds: list[int]) -> None:
        if sum(count for _, _, count in message.entries) != len(fds):
            wire.close(fds)
            self._spoil("descriptors were lost: too many open files")
            return
        for key, note, count in message.entries:
            self._forget(key)
            mine = [fds.pop(0) for _ in range(count)]
            self._entries[key] = note, mine
            self._fds += count
            self._bytes += len(key) + len(note)
        if self._fds > MOST_FDS or self._bytes > MOST_BYTES:
            self._spoil(f"{self._fds} descriptors and {self._bytes} bytes are too much to hold")

    def _drop(self, keys: list[str]) -> None:
        for key in keys or list(self._entries):
            self._forget(key)
        if not keys:
            self.spoilt = ""

    def _forget(self, key: str) -> None:
        note, fds = self._entries.pop(key, ("", []))
        if fds or note:
            self._fds -= len(fds)
            self._bytes -= len(key) + len(note)
            wire.close(fds)

    def _spoil(self, why: str) -> None:
        log.warning("%s: if its worker dies, its client is lost: %s", self._name, why)
        self._drop([])
        self.spoilt = why
