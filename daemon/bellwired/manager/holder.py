"""What the worker of a device has set up for its client, held so that a successor can go on: notes and descriptors.

The notes and keys are the worker's. They are stored and given back, and nothing here reads a note. Device code can send
such messages, too: it can spoil what its own device has left, and nothing else.

What is to outlive the manager, too, is also in a parcel.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator

from bellwired.workers import wire
from bellwired.workers.parcel import FULL, About, Parcel
from bellwired.workers.wire import Drop, Inherit, Keep, Named, WireError
from vfio_user.hang_up import hang_up

MOST_FDS = 4096
"""Descriptors that are held for a device: more than 2048 vectors and their doorbells take."""
MOST_BYTES = 8 << 20
"""Bytes of keys and notes that are held for a device: more than 65535 maps take."""
AGAIN = 1.0  # seconds until a parcel that could not be written is tried again
PIECE = 1 << 20  # bytes of the entries in a message
SOON = 0.05
"""Seconds until descriptors that were dropped go out of the parcel, too; at least ten times what that takes."""

log = logging.getLogger("bellwired")


class Holder:
    """Holds the ledger of the device ``name`` while workers come and go."""

    def __init__(self, name: str, about: Callable[[], About] = lambda: About("")) -> None:
        """``about`` is called for what the parcel shall say of the device."""
        self._name = name
        self._about = about
        self._entries: dict[str, tuple[str, list[int]]] = {}
        self._fds = self._bytes = 0
        self._parcel: Parcel | None = None
        self._last = 0.0  # the seconds that the parcel was last written again
        self._soon: asyncio.TimerHandle | None = None
        self.spoilt = ""
        """Why a successor cannot take over what is held: nothing is held then."""
        self.unsaved = ""
        """Why the parcel does not have what is held."""

    @property
    def holds(self) -> bool:
        """Whether a successor can go on with a client."""
        return bool(self._entries)

    @property
    def descriptors(self) -> int:
        """The number of descriptors that are held."""
        return self._fds

    def has(self, *keys: str) -> bool:
        """Whether a worker has kept something under one of ``keys``."""
        return not self._entries.keys().isdisjoint(keys)

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
            self._write(message, [])
            self._drop(message.keys)
        elif self.spoilt:
            wire.close(fds)
        elif sum(count for _, _, count in message.entries) != len(fds):
            wire.close(fds)
            self._spoil("descriptors were lost: too many open files")
        else:
            self._write(message, fds)
            self._keep(message, fds)
        if self._parcel is not None and self._parcel.length >= FULL:
            self._write_again()

    # -- the parcel

    def save(self, parcel: Parcel) -> None:
        """Write all that is held, and each change from now on, into ``parcel``, which stays the caller's."""
        self._parcel = parcel
        self._write_again()

    def forget_parcel(self) -> None:
        """Leave the parcel as it is."""
        self._parcel = None
        self._write_no_more()

    def note(self) -> None:
        """What there is to say of the device has changed."""
        if self._parcel is not None and self._entries:
            self._write(self._about(), [])

    def unpack(self, parcel: Parcel) -> About:
        """Take over what is in ``parcel``, and write changes into it from now on. Raises a WireError."""
        about = About("")
        try:
            for message, fds in parcel.read():
                if isinstance(message, About):
                    wire.close(fds)
                    about = message
                else:
                    self.heard(message, fds)
        except WireError:
            self._drop([])
            raise
        self._parcel = parcel
        return about

    def _write(self, message: Keep | Drop | About, fds: list[int]) -> None:
        """Write a change into the parcel."""
        if self._parcel is None:
            return
        if isinstance(message, Drop) and not message.keys:
            self._write_no_more()
            self._parcel.clear()
            self.unsaved = ""
        elif not self.unsaved:
            try:
                self._parcel.add(message, fds)
            except OSError as error:
                self._parcel.clear()  # without this change, the rest is wrong
                self._missed(error)

    def _missed(self, error: OSError) -> None:
        self.unsaved = error.strerror or str(error)
        log.warning("%s: if the daemon ends now, its client is lost: %s", self._name, self.unsaved)
        self._write_soon(AGAIN)

    def _write_soon(self, seconds: float) -> None:
        if self._parcel is not None and self._soon is None:
            wait = max(seconds, 10 * self._last)
            self._soon = asyncio.get_running_loop().call_later(wait, self._write_again)

    def _write_no_more(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None

    def _write_again(self) -> None:
        self._write_no_more()
        if self._parcel is None:
            return
        if not self._entries:
            self._parcel.clear()
            return
        begun = time.monotonic()
        try:
            self._parcel.replace([(self._about(), []), *((Keep(named), fds) for named, fds in self._batches())])
        except OSError as error:
            self._parcel.clear()
            self._missed(error)
        else:
            self.unsaved = ""
        self._last = time.monotonic() - begun

    def _batches(self) -> Iterator[tuple[list[Named], list[int]]]:
        """All that is held, in as few messages as possible."""
        named: list[Named] = []
        together: list[int] = []
        size = 0
        for key, (note, fds) in self._entries.items():
            if named and (len(together) + len(fds) > wire.MOST_FDS or size > PIECE):
                yield named, together
                named, together, size = [], [], 0
            named.append((key, note, len(fds)))
            together.extend(fds)
            size += len(key) + len(note)
        if named:
            yield named, together

    # -- what is held

    def bequest(self, *, hung: bool = False) -> list[tuple[Inherit, list[int]]]:
        """The messages that give a successor everything, with their descriptors. These stay the holder's."""
        messages = [(Inherit(named, last=False), fds) for named, fds in self._batches()]
        if not messages:
            messages = [(Inherit([], last=True), [])]
        messages[-1][0].last, messages[-1][0].hung = True, hung
        return messages

    def close(self) -> None:
        """Let everything go: the worker has ended, and the client is disconnected."""
        for fd in self.fds("client"):
            hang_up(fd)
        self._write(Drop([]), [])
        self._drop([])

    def leave(self) -> None:
        """Let everything go here, and leave it in the parcel, for another process."""
        self.forget_parcel()
        self._drop([])

    def _keep(self, message: Keep, fds: list[int]) -> None:
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
        if fds:
            self._write_soon(SOON)

    def _spoil(self, why: str) -> None:
        log.warning("%s: if its worker dies, its client is lost: %s", self._name, why)
        self._write(Drop([]), [])
        self._drop([])
        self.spoilt = why
