"""An address space: which device answers at which address."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple, Protocol

from bellwire_vmm.errors import AddressConflictError


class Target(Protocol):
    """What answers a range of addresses. ``offset`` counts from the range's start; sizes are 1-8 bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes, always: all ones where nothing else is known."""

    def write(self, offset: int, data: bytes) -> None:
        """Take ``data``, or lose it: a guest is never told."""


class Range(NamedTuple):
    """``[start, end)`` belongs to ``target``."""

    start: int
    end: int
    target: Target


class AddressSpace:
    """Memory or I/O ports, as the guest sees them beside its RAM.

    Any thread may look up while another changes it: a change replaces the whole (short) table at once.
    Changes themselves are the caller's to serialise.
    """

    def __init__(self) -> None:
        self._table: tuple[list[int], list[Range]] = ([], [])

    def add(self, start: int, size: int, target: Target) -> None:
        """Give ``[start, start + size)`` to ``target``; AddressConflictError if any of it is taken."""
        ranges = self._table[1]
        for taken in ranges:
            if start < taken.end and taken.start < start + size:
                raise AddressConflictError(f"[{start:#x}, {start + size:#x}) overlaps {taken}")
        self._replace([*ranges, Range(start, start + size, target)])

    def remove(self, target: Target) -> None:
        """Take away whatever ``target`` had."""
        self._replace([each for each in self._table[1] if each.target is not target])

    def find(self, address: int, size: int) -> tuple[Target, int] | None:
        """Who answers an access that lies wholly in one range, and at which offset; None for nobody."""
        starts, ranges = self._table
        at = bisect_right(starts, address) - 1
        if at >= 0:
            found = ranges[at]
            if address + size <= found.end:
                return found.target, address - found.start
        return None

    def read(self, address: int, size: int) -> bytes:
        """Read as the guest does: all ones where nobody answers."""
        found = self.find(address, size)
        return b"\xff" * size if found is None else found[0].read(found[1], size)

    def write(self, address: int, data: bytes) -> None:
        """Write as the guest does: lost where nobody answers."""
        found = self.find(address, len(data))
        if found is not None:
            found[0].write(found[1], data)

    def _replace(self, ranges: list[Range]) -> None:
        ranges.sort(key=lambda each: each.start)
        self._table = ([each.start for each in ranges], ranges)
