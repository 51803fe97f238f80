"""A condition on a register: ``mmio.status.DONE``, ``!mmio.status.DONE``, ``mmio.count>=4``, ``mmio.control&0x3``."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

from bellwire.declare.layout import Layout
from bellwire.declare.register import Register
from bellwire.errors import OptionError

if TYPE_CHECKING:
    from bellwire.device import PciDevice

_FORM = re.compile(r"(!?)([A-Za-z_][\w.\[\]]*?)(?:(==|!=|<=|>=|<|>|&)(0x[0-9A-Fa-f]+|\d+))?", re.ASCII)
_COMPARE: dict[str, Callable[[int, int], object]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "&": operator.and_,
}


def registers(layout: Layout) -> dict[str, Register[Any]]:
    """The registers of a device by name: ``mmio.status``, or ``mmio.queues[3].base`` for a row of a block."""
    return {
        f"{plan.bar.name}.{item.name}": item
        for plan in layout.bars.values()
        for item in plan.placed
        if isinstance(item, Register)
    }


def find_register(layout: Layout, name: str, where: str) -> Register[Any]:
    """The register of this name; the name of its BAR may be left out. An OptionError starts with ``where``."""
    known = registers(layout)
    found = [register for full, register in known.items() if name in (full, register.name)]
    if len(found) == 1:
        return found[0]
    if found:
        full = [each for each, register in known.items() if register in found]
        raise OptionError(f"{where}: there are several registers called {name}: {', '.join(full)}")
    names = {short: full for full, register in known.items() for short in (full, register.name)}
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {names[near[0]]}?" if near else f"the device has {', '.join(list(known)[:8]) or 'none'}"
    raise OptionError(f"{where}: there is no register {name}: {hint}")


def find_bits(register: Register[Any], field: str, where: str) -> int:
    """The bits of a register that have this name: those of a member of its kind."""
    members: dict[str, Enum] = dict(register.kind.__members__) if register.kind is not None else {}
    if field not in members:
        named = ", ".join(members) or "no named bits"
        raise OptionError(f"{where}: {register.name} has no {field}: it has {named}")
    return int(members[field].value)


def split_field(layout: Layout, path: str) -> tuple[str, str]:
    """``mmio.status.DONE`` as the name of the register and that of its bits; the latter is empty if none is given."""
    known = registers(layout)
    if path in known or any(path == register.name for register in known.values()):
        return path, ""
    name, dot, field = path.rpartition(".")
    known_names = {*known, *(register.name for register in known.values())}
    return (name, field) if dot and name in known_names else (path, "")


class Condition:
    """A test of what a register holds. ``text`` is checked when it is made, the names once the device is known.

    The stored value counts, and no read hook runs. A register alone is true if any bit of it is set; with a field, if
    all bits of the field are set.
    """

    def __init__(self, text: str) -> None:
        found = _FORM.fullmatch(text)
        if found is None:
            raise OptionError(
                f"when={text}: expected a register, as in mmio.status.DONE, !mmio.status.DONE or mmio.count>=4"
            )
        self.text = text
        self._negated = bool(found[1])
        self._path: str = found[2]
        self._compare = _COMPARE.get(found[3] or "")
        self._number = int(found[4], 0) if found[4] else 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Condition) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def bind(self, device: PciDevice) -> Callable[[], bool]:
        """A function that tells whether the condition holds for ``device`` now.

        An OptionError for an unknown name, and for a number that the register or its field can never hold.
        """
        where = f"when={self.text}"
        name, field = split_field(device.layout, self._path)
        register = find_register(device.layout, name, where)
        bits = find_bits(register, field, where) if field else 0
        most = bits or (1 << 8 * register.size) - 1
        if self._number > most or (self._compare is operator.eq and self._number & ~most):
            raise OptionError(f"{where}: {self._path} can never have this value: its bits are {most:#x}")
        file, negated = device.storage(register.bar), self._negated  # type: ignore[arg-type]  # found in a BAR
        compare, number = self._compare, self._number

        def holds() -> bool:
            value = register.load(file)
            if compare is not None:
                result = bool(compare(value & bits if bits else value, number))
            else:
                result = value & bits == bits if bits else value != 0
            return result is not negated

        return holds
