"""Names that Python, and the SDK, leave to a device's declarations."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable

from bellwire import PciDevice
from bellwire.declare.block import _OWN, BlockArray

HOOKS = ("read", "write", "ring", "set")


def camel(name: str) -> str:
    """``dma_control`` or ``DMA_CONTROL`` as ``DmaControl``."""
    words = [word for word in re.split(r"[_\W]+", name) if word]
    made = "".join(word[0].upper() + (word[1:].lower() if word.isupper() else word[1:]) for word in words)
    return made if made[:1].isalpha() and not keyword.iskeyword(made) else f"_{made}"


def class_of_values(kind: str, field: str) -> str:
    """The name of the IntEnum with the values of a field: ``ControlMode`` for ``MODE`` of ``Control``."""
    return kind + camel(field)


def plain(name: str) -> str:
    """A Python identifier."""
    made = re.sub(r"\W", "_", name)
    if not made or made[0].isdigit():
        made = f"_{made}"
    return f"{made}_" if keyword.iskeyword(made) else made


class Names:
    """Gives each declaration a name of its own: with an underscore at its end if the name is taken."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def of_device(self, name: str) -> str:
        """A name in a device class. The SDK's own (``reset``, ``dma``) are taken."""
        return self._give(plain(name), lambda each: hasattr(PciDevice, each) or each in PciDevice.__annotations__)

    def of_row(self, name: str) -> str:
        """A name in a row of a block."""
        return self._give(plain(name), lambda each: each in _OWN or each in HOOKS or hasattr(BlockArray, each))

    def _give(self, name: str, taken: Callable[[str], bool]) -> str:
        while name in self._given or taken(name) or name.startswith("__"):
            name = f"{name.lstrip('_') if name.startswith('__') else name}_"
        self._given.add(name)
        return name
