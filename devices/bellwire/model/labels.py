"""Labels: the names that the device's author has given to the places that a guest reads and writes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

from bellwire.declare.bar import Area
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.layout import Layout, Placed
from bellwire.declare.register import Register
from vfio_user import RegionIndex

_OTHERS: dict[int, str] = {RegionIndex.ROM: "expansion ROM"}


class Labels:
    """The labels of one device class, for all its regions."""

    def __init__(self, layout: Layout) -> None:
        self._regions = {
            index: _Region([(item.offset, item) for item in plan.placed], f"BAR {index}, where nothing is")
            for index, plan in layout.bars.items()
        }
        named = [(each.at + item.offset, item) for each in layout.extended for item in each.placed]
        self._regions[RegionIndex.CONFIG] = _Region(named, "config space")

    def at(self, region: int, offset: int, count: int) -> list[str]:
        """The names of what these bytes of a region belong to, in order. All holes of a region share one name."""
        known = self._regions.get(region)
        if known is not None:
            return list(dict.fromkeys(known.at(offset, offset + count)))
        return [_OTHERS.get(region) or f"region {region}"]

    def register(self, region: int, offset: int, count: int) -> Register[Any] | None:
        """The register that exactly these bytes make up, or None."""
        known = self._regions.get(region)
        return None if known is None else known.registers.get((offset, count))


class _Region:
    """One region: what lies at which offset, and the name of what lies between."""

    def __init__(self, placed: Sequence[tuple[int, Placed]], hole: str) -> None:
        spans: dict[int, tuple[int, str]] = {}
        for offset, item in placed:
            end, name = spans.get(offset, (0, ""))
            spans[offset] = max(end, offset + item.size), f"{name}/{item.name}" if name else _name(item)
        self._spans = [(end, start, name) for start, (end, name) in sorted(spans.items())]
        self._hole = hole
        self.registers = {(offset, item.size): item for offset, item in placed if isinstance(item, Register)}

    def at(self, offset: int, end: int) -> Iterator[str]:
        for stop, start, name in self._spans[bisect_left(self._spans, (offset + 1,)) :]:
            if offset < min(start, end):
                yield self._hole
            if start >= end:
                return
            yield name
            offset = stop
        if offset < end:
            yield self._hole


def _name(item: object) -> str:
    match item:
        case Register() | Doorbell() | IoRegion() | Area():
            return item.name
        case _:
            return "the MSI-X table"
