"""An address space: which device answers at which address."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple, Protocol

from bellwire_vmm.errors import AddressConflictError


class Target(Protocol):
    """A device that answers a range of addresses. ``offset`` counts from the range's start; sizes are 1-8 bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """Read exactly ``size`` bytes: all ones if nothing else is known."""

    def write(self, offset: int, data: bytes) -> None:
        """Write ``data``. A write that fails is lost: the guest is not told."""


class Range(NamedTuple):
    """An entry of the table: ``[start, end)`` belongs to ``target``."""

    start: int
    end: int
    target: Target


class AddressSpace:
    """An address space: memory beside the guest's RAM, or I/O ports.

    Any thread may look up an address while another thread changes the table: a change replaces the whole (short)
    table at once. Callers must not make two changes at the same time.
    """

    def __init__(self) -> None:
        self._table: tuple[list[int], list[Range]] = ([], [])

    def add(self, start: int, size: int, target: Target) -> None:
        """Give ``[start, start + size)`` to ``target``. Raises AddressConflictError if any of it is taken."""
        ranges = self._table[1]
        for taken in ranges:
            if start < taken.end and taken.start < start + size:
                raise AddressConflictError(f"[{start:#x}, {start + size:#x}) overlaps {taken}")
        self._replace([*ranges, Range(start, start + size, target)])

    def remove(self, target: Target) -> None:
        """Remove all ranges of ``target``."""
        self._replace([each for each in self._table[1] if each.target is not target])

    def find(self, address: int, size: int) -> tuple[Target, int] | None:
        """The target of an access that lies wholly in one range, and the offset there; None if there is none."""
        starts, ranges = self._table
        at = bisect_right(starts, address) - 1
        if at >= 0:
            found = ranges[at]
            if address + size <= found.end:
                return found.target, address - found.start
        return None

    def read(self, address: int, size: int) -> bytes:
        """Read as the guest does: all ones where no device answers."""
        found = self.find(address, size)
        return b"\xff" * size if found is None else found[0].read(found[1], size)

    def write(self, address: int, data: bytes) -> None:
        """Write as the guest does: lost where no device answers."""
        found = self.find(address, len(data))
        if found is not None:
            found[0].write(found[1], data)

    def _replace(self, ranges: list[Range]) -> None:
        ranges.sort(key=lambda each: each.start)
        self._table = ([each.start for each in ranges], ranges)
