"""Sets of addresses, kept as stretches: for what a device has written where the kernel does not keep it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

MOST = 65536
"""Stretches in one set. A set that would have more becomes a single stretch around all of them."""


class Stretches:
    """A set of addresses: stretches ``[start, end)`` in order, none of which touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def add(self, start: int, end: int) -> None:
        """Add the addresses ``[start, end)``."""
        if start >= end:
            return
        first, behind = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < behind:
            start, end = min(start, self._starts[first]), max(end, self._ends[behind - 1])
        self._starts[first:behind], self._ends[first:behind] = [start], [end]
        if len(self._starts) > MOST:
            self._starts, self._ends = [self._starts[0]], [self._ends[-1]]

    def take(self, start: int, end: int) -> list[tuple[int, int]]:
        """Take the addresses ``[start, end)`` out, and return those that were in the set."""
        first, behind = bisect_right(self._ends, start), bisect_left(self._starts, end)
        inside = list(zip(self._starts[first:behind], self._ends[first:behind], strict=True))
        if not inside:
            return []
        rest = [
            (low, high) for low, high in ((inside[0][0], start), (end, inside[-1][1])) if low < high
        ]  # of the outermost two
        self._starts[first:behind] = [low for low, _ in rest]
        self._ends[first:behind] = [high for _, high in rest]
        return [(max(low, start), min(high, end)) for low, high in inside]

    def covers(self, start: int, end: int) -> bool:
        """Whether all addresses ``[start, end)`` are in the set."""
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and end <= self._ends[at]
