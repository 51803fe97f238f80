"""A memory barrier for Python, which has none."""

from __future__ import annotations

import threading

_lock = threading.Lock()


def fence() -> None:
    """Make all earlier stores visible to other processors before any later load.

    x86 keeps the order of loads, and the order of stores. Only a load may pass an earlier store to another address. A
    queue depends on that order: each side writes an index, then reads whether the other side wants a notification
    (§2.7.7.1, §2.7.10.1, §2.8.21.3.1). Taking a lock is an atomic exchange, and no load or store passes one.
    """
    with _lock:
        pass
