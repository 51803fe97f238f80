"""Eventfds that a peer has too. Whether a call on one may block belongs to the open file: the peer can change it any
time, and some do without meaning to (QEMU has every descriptor block that it receives).
"""

from __future__ import annotations

import os

_read, _write, _set_blocking, _NOWAIT = os.preadv, os.eventfd_write, os.set_blocking, os.RWF_NOWAIT
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
    """Add 1; a counter that is full says "signalled" well enough.

    Linux knows no write to an eventfd that never waits (RWF_NOWAIT is EOPNOTSUPP). So only a peer that has the
    descriptor block again between these two calls, and its counter full, can still hold us up.
    """
    _set_blocking(fd, False)
    try:  # suppress() would cost as much as the system call
        _write(fd, 1)
    except BlockingIOError:
        return
