"""Names that Python, and the SDK, leave to a device's declarations."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable

from bellwire import PciDevice
from bellwire.declare.block import _OWN, BlockArray

HOOKS = ("read", "write", "ring", "set")
MAKERS = ("Bar", "IntX", "Msi", "MsiX")
ROW_MAKERS = ("doorbell", "reg")
"""What the bodies of a device class, and of a row's class, call: a register of this name would hide it."""


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
        own = {*PciDevice.__annotations__, *MAKERS}
        return self._give(plain(name), lambda each: hasattr(PciDevice, each) or each in own)

    def of_row(self, name: str) -> str:
        """A name in a row of a block."""
        own = {*_OWN, *HOOKS, *ROW_MAKERS}
        return self._give(plain(name), lambda each: each in own or hasattr(BlockArray, each))

    def of_member(self, name: str) -> str:
        """A name in an enumeration, with a number at its end if it is taken: ``Y2``. Python's own are taken."""
        made, number = name, 2
        while made in self._given or made == "mro" or made.startswith("__") or _is_sunder(made):
            made, number = f"{name.lstrip('_') or 'MEMBER'}{number}", number + 1
        self._given.add(made)
        return made

    def _give(self, name: str, taken: Callable[[str], bool]) -> str:
        while name in self._given or taken(name) or name.startswith("__"):
            name = f"{name.lstrip('_') if name.startswith('__') else name}_"
        self._given.add(name)
        return name


def _is_sunder(name: str) -> bool:
    """Whether ``enum`` reserves a name: those with one underscore at either end."""
    return len(name) > 2 and name.startswith("_") and name.endswith("_")
