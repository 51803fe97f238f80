"""Labels: the names that the device's author has given to the places that a guest reads and writes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

from bellwire.declare.bar import Area
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.layout import BarLayout, Layout
from bellwire.declare.register import Register
from vfio_user import RegionIndex

_OTHERS: dict[int, str] = {RegionIndex.CONFIG: "config space", RegionIndex.ROM: "expansion ROM"}


class Labels:
    """The labels of one device class, for all its regions."""

    def __init__(self, layout: Layout) -> None:
        self._bars = {index: _Bar(plan) for index, plan in layout.bars.items()}

    def at(self, region: int, offset: int, count: int) -> list[str]:
        """The names of what these bytes of a region belong to, in order. All holes of a BAR share one name."""
        bar = self._bars.get(region)
        if bar is not None:
            return list(dict.fromkeys(bar.at(offset, offset + count)))
        return [_OTHERS.get(region) or f"region {region}"]

    def register(self, region: int, offset: int, count: int) -> Register[Any] | None:
        """The register that exactly these bytes make up, or None."""
        bar = self._bars.get(region)
        return None if bar is None else bar.registers.get((offset, count))


class _Bar:
    def __init__(self, plan: BarLayout) -> None:
        spans: dict[int, tuple[int, str]] = {}
        for item in plan.placed:
            end, name = spans.get(item.offset, (0, ""))
            spans[item.offset] = max(end, item.offset + item.size), f"{name}/{item.name}" if name else _name(item)
        self._spans = [(end, start, name) for start, (end, name) in sorted(spans.items())]
        self._hole = f"BAR {plan.bar.index}, where nothing is"
        self.registers = {(item.offset, item.size): item for item in plan.placed if isinstance(item, Register)}

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
