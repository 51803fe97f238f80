"""``suggest``: what a guest touches that the device lacks, and the declarations to paste."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from bellwire.declare.declared import is_power_of_two
from bellwire.declare.register import LARGEST
from bellwire.filters import Filter, Read, Write

MOST_PLACES = 256
MOST_VALUES = 4
"""Different values of one place that are remembered."""


@dataclass(slots=True)
class Touched:
    """What a guest has done where nothing is declared, in ``size`` bytes at ``offset``."""

    offset: int
    size: int
    reads: int = 0
    writes: int = 0
    values: list[int] = field(default_factory=list)

    @property
    def access(self) -> str:
        """The access word that serves what was seen."""
        return "rw" if self.reads and self.writes else "wo" if self.writes else "ro"

    def joined(self, other: Touched) -> Touched:
        """Both, which overlap, as one. ``other`` begins later."""
        size = max(self.size, other.offset + other.size - self.offset)
        return Touched(self.offset, size, self.reads + other.reads, self.writes + other.writes)

    @property
    def fault(self) -> str:
        """Why no register can be declared there. Empty if one can."""
        if self.size > LARGEST:
            return f"accesses that overlap: no register has {self.size} bytes"
        if is_power_of_two(self.size) and self.offset % self.size:
            return f"misaligned: a register of {self.size} bytes lies at a multiple of {self.size}"
        return ""

    def line(self, bar: str) -> str:
        """The declaration, and why; as a comment if it cannot be declared."""
        size = "" if self.size == 4 else f", size={self.size}"
        access = "" if self.access == "rw" else f', access="{self.access}"'
        seen = [f"{count} {word}" for count, word in ((self.reads, "reads"), (self.writes, "writes")) if count]
        if self.values:
            seen.append(f"of {', '.join(map(hex, self.values))}")
        line = f"{bar}_{self.offset:02x} = {bar}.reg({self.offset:#04x}{size}{access})  # {' '.join(seen)}"
        return f"# {line}; {self.fault}" if self.fault else line


class Suggest(Filter):
    """Collects accesses to places where the device declares nothing, and suggests declarations."""

    def start(self) -> None:
        """Nothing was touched yet."""
        self._bars = {index: plan.bar.name for index, plan in self.device.layout.bars.items()}
        self.touched: dict[tuple[int, int], Touched] = {}
        """By region and offset."""
        self.missed = 0
        """Accesses to more places than are remembered."""

    def after_read(self, read: Read) -> None:
        """A guest has read."""
        if (found := self._found(read)) is not None:
            found.reads += 1

    def after_write(self, write: Write) -> None:
        """A guest has written."""
        if (found := self._found(write)) is not None:
            found.writes += 1
            if write.value not in found.values and len(found.values) < MOST_VALUES:
                found.values.append(write.value)

    def lines(self) -> list[str]:
        """The declarations to paste, in order of address."""
        return [each.line(self._bars[region]) for region, each in self._apart()]

    def report(self) -> dict[str, object]:
        """The declarations, and the number of accesses to more places than are remembered."""
        return {"declarations": self.lines()} | ({"missed": self.missed} if self.missed else {})

    def _apart(self) -> Iterator[tuple[int, Touched]]:
        """The places with their regions, in order. Those that overlap are one: registers may not."""
        last: tuple[int, Touched] | None = None
        for (region, offset), each in sorted(self.touched.items(), key=lambda item: item[0]):
            if last is not None and last[0] == region and offset < last[1].offset + last[1].size:
                last = region, last[1].joined(each)
                continue
            if last is not None:
                yield last
            last = region, each
        if last is not None:
            yield last

    def _found(self, event: Read | Write) -> Touched | None:
        place = event.place
        if place.region not in self._bars or place.items:
            return None
        key = place.region, place.offset
        found = self.touched.get(key)
        if found is None:
            if len(self.touched) >= MOST_PLACES:
                self.missed += 1
                return None
            found = self.touched[key] = Touched(place.offset, place.count)
        found.size = max(found.size, place.count)
        return found
