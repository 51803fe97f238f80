"""Arguments: what a user may set on a filter, as in ``delay:read=2ms``."""

from __future__ import annotations

import re
from typing import Any, TypeVar, overload

from bellwire.declare.option import Option
from bellwire.errors import OptionError

Setting = TypeVar("Setting", bound=Any)
_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0}
_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)")


class Argument(Option[Setting]):
    """``rate = Argument(100, least=1, help="events a second")``: declared and checked as an Option of a device."""

    @overload
    def __get__(self, filter: None, owner: type[Any]) -> Argument[Setting]: ...
    @overload
    def __get__(self, filter: Any, owner: type[Any]) -> Setting: ...
    def __get__(self, filter: Any, owner: type[Any]) -> Any:
        return self if filter is None else filter.arguments.get(self.name, self.default)


class Duration(Argument[float]):
    """``read = Duration(0, help="...")``: an argument in seconds. Users may write 2ms, 10us, 1.5s or 1min."""

    def __init__(self, default: float = 0.0, *, most: float | None = None, help: str = "") -> None:
        super().__init__(float(default), least=0.0, most=most, help=help)

    @property
    def type_name(self) -> str:
        """What help texts call it."""
        return "duration"

    @property
    def allowed(self) -> str:
        """The longest duration in words, if there is one."""
        return "" if self.most is None else f"at most {self.text(self.most)}"

    def text(self, value: float) -> str:
        """``value`` as a user would write it."""
        for unit in ("s", "ms", "us"):
            if value == 0 or value / _UNITS[unit] >= 1:
                break
        return f"{value / _UNITS[unit]:.10f}".rstrip("0").rstrip(".") + unit

    def parse(self, text: str) -> float:
        """Convert what a user wrote into seconds. An OptionError says what was expected."""
        found = _TIME.fullmatch(text.strip())
        if found is None or found[2] not in _UNITS:
            raise OptionError(f"option {self.name}={text}: expected a duration, as 2ms, 10us, 1.5s or 1min")
        return float(found[1]) * _UNITS[found[2]]
