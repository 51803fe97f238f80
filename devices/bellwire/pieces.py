"""Data in pieces, as system calls take it: no more than IOV_MAX of them at once, and seldom all of their bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence

Pieces = Sequence[bytes | bytearray | memoryview]

MOST_PIECES = 1024
"""The kernel's IOV_MAX: with one more, readv(2), writev(2) and sendmsg(2) do nothing (EINVAL, EMSGSIZE)."""


def after(pieces: Pieces, done: int) -> list[memoryview]:
    """What is left of ``pieces`` after the first ``done`` bytes."""
    left = []
    for piece in pieces:
        if done < len(piece):
            left.append(memoryview(piece)[done:])
        done = max(0, done - len(piece))
    return left


def write(fd: int, pieces: Pieces) -> int:
    """How many bytes a descriptor that does not block has taken now: all, unless it has no room. May raise OSError."""
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
    """The same bytes in at most ``most`` pieces, for what one call must take whole: a packet, say."""
    return pieces if len(pieces) <= most else [memoryview(b"".join(pieces))]
