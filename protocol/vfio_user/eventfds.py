"""Eventfds that a peer has too. Whether a call on one may block belongs to the open file: the peer can change it any
time, and some do without meaning to (QEMU has every descriptor block that it receives).
"""

from __future__ import annotations

import os

_read, _write, _NOWAIT = os.preadv, os.eventfd_write, os.RWF_NOWAIT
SIZE = 8
"""Bytes of an eventfd's counter."""


def take(fd: int, counter: bytearray) -> int:
    """What has been added since the last time, 0 for nothing. It never waits (RWF_NOWAIT, Linux 5.8 or newer).

    ``counter`` has :data:`SIZE` bytes, to be used again and again.
    """
    try:
        _read(fd, (counter,), -1, _NOWAIT)
    except BlockingIOError:
        return 0
    return int.from_bytes(counter, "little")


def signal(fd: int) -> None:
    """Add 1 to a non-blocking eventfd; a full counter says "signalled" well enough.

    Linux has no write to an eventfd that never waits (RWF_NOWAIT is EOPNOTSUPP), and to make the file non-blocking
    before each write would add half to the cost of an interrupt. So whoever takes the descriptor makes it
    non-blocking once. A peer that makes it block again, and fills the counter, holds up the process that serves it.
    """
    try:  # suppress() would cost as much as the system call
        _write(fd, 1)
    except BlockingIOError:
        return
