"""What a guest has set up of a device, as far as the VMM keeps it: the rest is in the device."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from bellwire_vmm.device.bars import Bar
from bellwire_vmm.errors import StateError

MOST_VECTORS = 2048
_HEX = re.compile(r"(?:[0-9a-f]{2})*")


@dataclass(frozen=True, slots=True)
class Setup:
    """``bars`` are addresses by number, ``rom`` whether the ROM is enabled, ``decoding`` the low bits of Command.

    ``line`` is the Interrupt Line register, ``table`` the MSI-X table in hex, and ``pending`` are masked vectors that
    the device has triggered.
    """

    bars: dict[str, int]
    rom: bool
    decoding: int
    line: int
    table: str
    pending: list[int]

    def pack(self) -> bytes:
        """The setup as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def unpack(cls, data: bytes, bars: Iterable[Bar]) -> Self:
        """Undo `pack`, for a device with ``bars``. Raises StateError, naming the field, for anything else."""
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise StateError(f"the setup of a device is no JSON: {error}") from None
        names = [each.name for each in fields(cls)]
        if not isinstance(found, dict) or found.keys() != set(names):
            raise StateError(f"the setup of a device is malformed: expected an object with {', '.join(names)}")
        setup = cls(**found)
        _check("bars", isinstance(found["bars"], dict))
        for bar in bars:
            address = setup.bars.get(str(bar.index))
            _check("bars", _number(address, 1 << 64) and address in range(0, 1 << 64, bar.size))
        _check("rom", isinstance(found["rom"], bool))
        _check("decoding", _number(setup.decoding, 256))
        _check("line", _number(setup.line, 256))
        _check("table", isinstance(found["table"], str) and _HEX.fullmatch(setup.table) is not None)
        _check(
            "pending", isinstance(found["pending"], list) and all(_number(n, MOST_VECTORS) for n in found["pending"])
        )
        return setup


def _check(field: str, good: bool) -> None:
    if not good:
        raise StateError(f"the setup of a device is malformed: {field}")


def _number(value: Any, end: int) -> bool:
    return type(value) is int and 0 <= value < end
