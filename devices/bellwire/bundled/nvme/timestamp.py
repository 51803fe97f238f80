"""The Timestamp feature (§5.21.1.14): the host sets the clock, in milliseconds since 1970, and it goes on."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

SIZE = 8
MASK = (1 << 48) - 1
ORIGIN_HOST = 1 << 1
"""The attribute of a timestamp that the host has set. Without it the timestamp counts from power-on."""


class TimestampState(ctypes.Structure):
    """A clock that the host has set, in the device's state. All zeros: the host has not set it."""

    _fields_ = [("base", ctypes.c_uint64), ("since", ctypes.c_uint64), ("attributes", ctypes.c_uint64)]
    base: int
    """The milliseconds that it was set to."""
    since: int
    """Milliseconds of the machine's clock (CLOCK_BOOTTIME) at that time."""
    attributes: int


class Timestamp:
    """A clock in milliseconds, from power-on or from the time that the host sets. A controller reset keeps it."""

    def __init__(self, state: TimestampState, clock: Callable[[], int]) -> None:
        """``clock`` gives nanoseconds since the machine was started."""
        self._state = state
        self._clock = clock
        self._started = self._milliseconds()

    def power_on(self) -> None:
        """Count from now on, after a power-on: the state is zero."""
        self._started = self._milliseconds()

    @property
    def now(self) -> int:
        """The time in milliseconds, 48 bits."""
        since = self._state.since or self._started
        return (self._state.base + max(0, self._milliseconds() - since)) & MASK

    def get(self) -> bytes:
        """Get Features: the 8 bytes of data."""
        return self.now.to_bytes(6, "little") + bytes((self._state.attributes & 0xFF, 0))

    def set(self, data: bytes) -> bytes:
        """Set Features. Returns the data of the event: the time before, and the milliseconds since power-on."""
        event = struct.pack("<QQ", self.now, max(0, self._milliseconds() - self._started))
        self._state.base = int.from_bytes(data[:6], "little")
        self._state.since, self._state.attributes = self._milliseconds(), ORIGIN_HOST
        return event

    def _milliseconds(self) -> int:
        return self._clock() // 1_000_000
