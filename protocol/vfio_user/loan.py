"""What a channel lends to code that receives and sends without it, and what such code waits with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Loan(NamedTuple):
    """A channel's buffer and its socket's methods, lent by :meth:`vfio_user.Channel.lend`."""

    buffer: bytearray | memoryview
    room: tuple[memoryview]
    receive: Callable[[tuple[memoryview], int, int], tuple[int, list[tuple[int, int, bytes]], int, object]]
    send: Callable[[bytes, int], int]


Ready = list[tuple[int, int]]
"""What ``epoll.poll()`` returns: pairs of a descriptor and its events."""
