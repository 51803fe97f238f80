"""Eventfds that a peer holds too.

O_NONBLOCK belongs to the open file, which both sides share: the peer can change it at any time. Some do so by
accident: QEMU sets every descriptor that it receives to blocking.
"""

from __future__ import annotations

import os

_read, _write, _NOWAIT = os.preadv, os.eventfd_write, os.RWF_NOWAIT
SIZE = 8
"""The size of an eventfd's counter, in bytes."""


def is_eventfd(fd: int) -> bool:
    """Whether the descriptor is an eventfd. A write to anything else might wait or fail."""
    return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]"


def take(fd: int, counter: bytearray | memoryview) -> int:
    """Read the counter and set it to 0. Returns 0 if nothing was added. Never waits (RWF_NOWAIT, Linux 5.8 or newer).

    ``counter`` is a buffer of :data:`SIZE` bytes, which the caller can use again.
    """
    try:
        _read(fd, (counter,), -1, _NOWAIT)
    except BlockingIOError:
        return 0
    return int.from_bytes(counter, "little")


def signal(fd: int) -> None:
    """Add 1 to a non-blocking eventfd. A full counter is left as it is: the reader wakes all the same.

    Linux has no write to an eventfd that never waits (RWF_NOWAIT gives EOPNOTSUPP). Setting O_NONBLOCK before each
    write would add half to the cost of an interrupt, so the code that takes the descriptor sets it once. A peer that
    clears it, and fills the counter, holds up the process that serves it.
    """
    try:  # suppress() would cost as much as the system call
        _write(fd, 1)
    except BlockingIOError:
        return
