"""Buffers of one piece each, many at a time, without an object for each: enough for a card that moves packets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Whole:
    """Buffers that were taken together. Each is one descriptor, to read or to write, in one map of guest memory."""

    ids: list[int]
    views: list[memoryview]
    sizes: list[int]
    """The number of bytes of each view."""
    to_write: bool
    """Whether the device may write them; else it may read them."""

    def __len__(self) -> int:
        return len(self.ids)
