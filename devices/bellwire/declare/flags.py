"""What a number says as flags: the names of its bits, and the values of its fields."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NamedTuple


class Part(NamedTuple):
    """A flag, which is one bit, or a field: a member with several adjacent bits that no other member has."""

    mask: int
    name: str


class Parts:
    """The parts of a class of flags. Members that overlap others, and those whose bits are not adjacent, are none."""

    def __init__(self, kind: type[IntFlag | IntEnum]) -> None:
        found: dict[int, str] = {}
        numbers = {name: int(member) for name, member in kind.__members__.items()}
        for name, number in sorted(numbers.items(), key=lambda item: item[1].bit_count() != 1):
            adjacent = number and (number // (number & -number) + 1).bit_count() == 1
            if adjacent and not any(number & mask for mask in found):
                found[number] = name
        self._parts = [Part(mask, found[mask]) for mask in sorted(found)]
        self._all = sum(found)

    def text(self, value: int) -> str:
        """The flags that are set, ``|`` between them, and fields with their values: ``ENABLE|MODE=0x2``."""
        words = [_word(part, value & part.mask) for part in self._parts if value & part.mask]
        if rest := value & ~self._all:
            words.append(hex(rest))
        return "|".join(words) or "0"


def _word(part: Part, bits: int) -> str:
    low = part.mask & -part.mask
    return part.name if part.mask == low else f"{part.name}={bits // low:#x}"
