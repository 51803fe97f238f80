"""Whether a worker gets on with what its client has sent: seen from outside, by a look at what the holder has.

A worker that hangs, or was stopped, leaves something behind that does not move: bytes in the client's socket, a ring in
a doorbell's fd, a command that was begun, or a hook that runs. A look costs the worker nothing. It is asked, by a ping,
only while something waits, so an idle worker sleeps on. What moves meanwhile shows that it gets on, ping or not.

The worker says what the descriptors are, and it may be hostile. A file is read only if it is memory, and others are
polled only if they are sockets or eventfds: so a look never waits. Whatever a worker makes of them, it gets itself
killed, or it is not watched.
"""

from __future__ import annotations

import math
import os
import select
import time

from bellwire.model.state import BUSY as HOOKS
from bellwired.manager.holder import Holder
from vfio_user.journal import BUSY, HEAD, MARKS, WAITS

LOOKS = 4
"""Looks in the time after which a worker is killed."""
MOST_PAUSES = 3
"""Pauses between two looks that may become one, before the time does not count."""
_BELLS = ("event ", "shadow ", "commands")
_WORDS = {"state": (8 * HOOKS, 8), "journal": (0, MARKS), "rings": (0, 4096)}
"""What of each memory file is compared, as start and size: the count of running hooks, the marks, the first rings."""


class Watch:
    """Looks at the worker whose ledger ``holder`` has."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._seen: dict[str, bytes] = {}
        self._since: float | None = None
        self._last = 0.0

    def look(self, pause: float = math.inf, *, asked: bool = False) -> float:
        """The seconds since a look has first found what waits still; 0.0 if nothing does. ``asked``: a question waits.

        ``pause`` is how long ago the last look should have been, in seconds. If that was much longer ago, this process
        did not run meanwhile, and perhaps nothing did: so the time does not count.
        """
        now = time.monotonic()
        if now - self._last > MOST_PAUSES * pause:
            self._since = None
        self._last = now
        seen = {key: self._read(key, *place) for key, place in _WORDS.items()}
        if not self._waits(seen, asked):
            self._since = None
            return 0.0
        if self._since is None or seen != self._seen:
            self._since = now
        self._seen = seen
        return max(now - self._since, 1e-9)

    def answered(self) -> None:
        """The worker has answered a ping: it gets on."""
        self._since = None

    def _waits(self, seen: dict[str, bytes], asked: bool) -> bool:
        marks = memoryview(seen["journal"].ljust(MARKS, b"\0")).cast("I")
        if marks[WAITS]:  # the worker waits for its client
            return False
        return asked or any(seen["state"]) or marks[BUSY] > marks[HEAD] or self._has_come()

    def _has_come(self) -> bool:
        """Whether the client has sent or rung something that the worker has not taken."""
        poll = select.poll()
        for fd in (*self._holder.fds("client"), *self._holder.below(_BELLS)):
            if _link(fd).startswith(("socket:", "anon_inode:[eventfd]")):
                poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    def _read(self, key: str, start: int, size: int) -> bytes:
        for fd in self._holder.fds(key):
            if _link(fd).startswith("/memfd:"):
                return os.pread(fd, size, start)
        return b""


def _link(fd: int) -> str:
    """What a descriptor is, in the kernel's words: no file system is asked."""
    return os.readlink(f"/proc/self/fd/{fd}")
