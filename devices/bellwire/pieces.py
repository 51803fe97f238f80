"""Data in pieces, for system calls that take at most IOV_MAX pieces and may transfer only some of the bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence

Pieces = Sequence[bytes | bytearray | memoryview]

MOST_PIECES = 1024
"""The kernel's IOV_MAX. With more pieces, readv(2), writev(2) and sendmsg(2) fail (EINVAL, EMSGSIZE)."""


def after(pieces: Pieces, done: int) -> list[memoryview]:
    """The rest of ``pieces`` after the first ``done`` bytes."""
    left = []
    for piece in pieces:
        if done < len(piece):
            left.append(memoryview(piece)[done:])
        done = max(0, done - len(piece))
    return left


def write(fd: int, pieces: Pieces) -> int:
    """Write to a non-blocking descriptor until it has no room. Returns the number of bytes written. Raises OSError."""
    sent, left = 0, after(pieces, 0)
    try:
        while left:
            count = os.writev(fd, left[:MOST_PIECES])
            sent += count
            left = after(left, count)
    except BlockingIOError:
        pass
    return sent


def one_call(pieces: Sequence[memoryview], most: int = MOST_PIECES) -> Sequence[memoryview]:
    """The same bytes in at most ``most`` pieces, for data that one system call must take whole, such as a packet."""
    return pieces if len(pieces) <= most else [memoryview(b"".join(pieces))]
