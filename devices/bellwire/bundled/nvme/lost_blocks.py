"""Blocks that cannot be read: the host has marked them with Write Uncorrectable (§6.16)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

MOST_RANGES = 1024
"""The limit of ranges in one namespace: a host could mark every other block."""


class LostBlocks:
    """Sorted ranges of blocks that do not touch or overlap: their ``starts``, and the ``ends`` after them."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, count in ranges:
            self.add(start, count)

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The first block and the count of each range."""
        return [(start, end - start) for start, end in zip(self._starts, self._ends, strict=True)]

    def first(self, start: int, count: int) -> int | None:
        """The first lost block of ``count`` blocks from ``start``; None if all can be read."""
        at = bisect_right(self._ends, start)
        if at < len(self._starts) and self._starts[at] < start + count:
            return max(start, self._starts[at])
        return None

    def add(self, start: int, count: int) -> bool:
        """Mark these blocks as lost. False, without a change, if there would be too many ranges."""
        low, high = bisect_left(self._ends, start), bisect_right(self._starts, start + count)
        if low == high and len(self._starts) == MOST_RANGES:
            return False
        end = start + count
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]
        return True

    def remove(self, start: int, count: int) -> None:
        """These blocks have been written. If that splits a range and there are too many, only its longer part stays."""
        end = start + count
        low, high = bisect_right(self._ends, start), bisect_left(self._starts, end)
        if low >= high:
            return
        left = [(self._starts[low], start)] if self._starts[low] < start else []
        right = [(end, self._ends[high - 1])] if self._ends[high - 1] > end else []
        kept = left + right
        if len(kept) > high - low and len(self._starts) == MOST_RANGES:
            kept = [max(kept, key=lambda stretch: stretch[1] - stretch[0])]
        self._starts[low:high] = [first for first, _ in kept]
        self._ends[low:high] = [last for _, last in kept]

    def clear(self) -> None:
        """All blocks have been written."""
        self._starts.clear()
        self._ends.clear()
