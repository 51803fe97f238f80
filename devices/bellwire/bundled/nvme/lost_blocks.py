"""Blocks that cannot be read: the host has marked them with Write Uncorrectable (§6.16)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

MOST_RANGES = 1024
"""The limit of ranges in one namespace: a host could mark every other block."""


class LostBlocks:
    """Sorted ranges of blocks that do not touch or overlap: their ``starts``, and the ``ends`` after them."""

    __slots__ = ("_ends", "starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self.starts: list[int] = []
        self._ends: list[int] = []
        for start, count in ranges:
            self.add(start, count)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The first block and the count of each range."""
        return [(start, end - start) for start, end in zip(self.starts, self._ends, strict=True)]

    def first(self, start: int, count: int) -> int | None:
        """The first lost block of ``count`` blocks from ``start``; None if all can be read."""
        at = bisect_right(self._ends, start)
        if at < len(self.starts) and self.starts[at] < start + count:
            return max(start, self.starts[at])
        return None

    def add(self, start: int, count: int) -> bool:
        """Mark these blocks as lost. False, without a change, if there would be too many ranges."""
        low, high = bisect_left(self._ends, start), bisect_right(self.starts, start + count)
        if low == high and len(self.starts) == MOST_RANGES:
            return False
        end = start + count
        if low < high:
            start, end = min(start, self.starts[low]), max(end, self._ends[high - 1])
        self.starts[low:high] = [start]
        self._ends[low:high] = [end]
        return True

    def remove(self, start: int, count: int) -> None:
        """These blocks have been written. If that splits a range and there are too many, only its longer part stays."""
        end = start + count
        low, high = bisect_right(self._ends, start), bisect_left(self.starts, end)
        if low >= high:
            return
        left = [(self.starts[low], start)] if self.starts[low] < start else []
        right = [(end, self._ends[high - 1])] if self._ends[high - 1] > end else []
        kept = left + right
        if len(kept) > high - low and len(self.starts) == MOST_RANGES:
            kept = [max(kept, key=lambda stretch: stretch[1] - stretch[0])]
        self.starts[low:high] = [first for first, _ in kept]
        self._ends[low:high] = [last for _, last in kept]

    def clear(self) -> None:
        """All blocks have been written."""
        self.starts.clear()
        self._ends.clear()
