"""A memory barrier, which Python has no name for."""

from __future__ import annotations

import threading

_lock = threading.Lock()


def fence() -> None:
    """Have all stores so far seen by other processors before any load that follows.

    x86 keeps loads among themselves in order, and stores too; only a load may pass an earlier store to another
    place. Both sides of a queue do just that: each writes an index, then reads whether the other wants to be
    told (§2.7.7.1, §2.7.10.1, §2.8.21.3.1). Taking a lock is an atomic exchange, which nothing passes.
    """
    with _lock:
        pass
