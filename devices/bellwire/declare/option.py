"""Options: what a user may set on a device, as ``-o KEY=VALUE``."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from bellwire.declare.declared import Declared
from bellwire.declare.hooks import mark
from bellwire.errors import OptionError

if TYPE_CHECKING:
    from bellwire.device import PciDevice

Setting = TypeVar("Setting", bound=bool | int | float | str | Path)
SetHook = TypeVar("SetHook", bound=Callable[[Any, Any], None])

_WORDS = {
    "1": True,
    "yes": True,
    "true": True,
    "on": True,
    "up": True,
    "0": False,
    "no": False,
    "false": False,
    "off": False,
    "down": False,
}
_LARGE = 1 << 20
_SUFFIXES = {"K": 10, "M": 20, "G": 30, "T": 40}


class Option(Declared, Generic[Setting]):
    """``rate = Option(100, least=1, help="samples a second")``: an option. The type of its default is its type.

    ``least`` and ``most`` are the bounds of a number. ``choices`` are all the values that are allowed. ``check`` is a
    function that gets a value: it returns None for a good value, and else what was expected, in words that follow
    "expected". A value is checked when a device is made, and whenever the option is changed. Users may write integers
    in any base, with a suffix K, M, G or T (powers of 1024). A float must be finite; a text or path must have no NUL.
    """

    def __init__(
        self,
        default: Setting,
        *,
        least: float | None = None,
        most: float | None = None,
        choices: Iterable[Setting] = (),
        check: Callable[[Setting], str | None] | None = None,
        help: str = "",
    ) -> None:
        self.default: Setting = default
        self.least = least
        self.most = most
        self.choices = tuple(choices)
        self.help = help
        self._check = check

    def check(self, where: str) -> None:
        """Refuse a type that no command line could set, bounds that make no sense, and a default outside them."""
        if not isinstance(self.default, bool | int | float | str | Path):
            self.refuse(where, f"an option is a bool, int, float, str or Path, not {type(self.default).__name__}")
        bounded = self.least is not None or self.most is not None
        if bounded and (isinstance(self.default, bool) or not isinstance(self.default, int | float)):
            self.refuse(where, f"least and most are for numbers, and the default is a {self.type_name}")
        if self.choices and bounded:
            self.refuse(where, "choices exclude least and most")
        expected = self.fault(self.default)
        if expected is not None:
            self.refuse(where, f"the default {self.default!r} is not what is allowed: {expected}")

    @property
    def allowed(self) -> str:
        """The bounds or the choices in words; empty if there are none."""
        if self.choices:
            *others, last = (self.text(choice) for choice in self.choices)
            return f"{', '.join(others)} or {last}" if others else last
        if self.least is not None and self.most is not None:
            return f"{_short(self.least)} to {_short(self.most)}"
        if self.least is not None:
            return f"at least {_short(self.least)}"
        return "" if self.most is None else f"at most {_short(self.most)}"

    def text(self, value: Setting) -> str:
        """``value`` as a user would write it. An empty path gives an empty text."""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, Path):
            return str(value) if value != Path() else ""
        return _short(value) if isinstance(value, int) else str(value)

    def fault(self, value: Any) -> str | None:
        """What was expected, if ``value`` is not allowed; else None. ``value`` has the right type already."""
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        if isinstance(value, str | Path) and "\0" in str(value):
            return "no NUL"
        low = self.least is not None and value < self.least
        high = self.most is not None and value > self.most
        if low or high or (self.choices and value not in self.choices):
            return self.allowed
        return None if self._check is None else self._check(value)

    def set(self, hook: SetHook) -> SetHook:
        """Allow changes while the device runs: ``hook(self, value)`` applies the value, or raises an OptionError."""
        return mark(hook, "set", self)

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Option[Setting]: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> Setting: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Any:
        if device is None:
            return self
        return device.core.options.get(self.name, self.default)

    @property
    def type_name(self) -> str:
        """The name of the option's type in help texts and errors: bool, int, float, str or path."""
        return "path" if isinstance(self.default, Path) else type(self.default).__name__

    def parse(self, text: str) -> Any:
        """Convert what a user wrote into a value. An OptionError says what was expected."""
        try:
            if isinstance(self.default, bool):
                return _WORDS[text.lower()]
            if isinstance(self.default, int):
                shift = _SUFFIXES.get(text[-1:].upper(), 0)
                return type(self.default)(int(text[:-1] if shift else text, 0) << shift)
            return type(self.default)(text)
        except (ValueError, KeyError):
            expected = "yes or no" if isinstance(self.default, bool) else f"a value of type {self.type_name}"
            raise OptionError(f"option {self.name}={text}: expected {expected}") from None


def parse_options(options: Mapping[str, Option[Any]], given: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Check ``given`` (texts, or values of the right type) against the options of ``device``; return the values.

    An OptionError names an unknown option or a value that is not allowed.
    """
    values: dict[str, Any] = {}
    for name, value in given.items():
        option = options.get(name)
        if option is None:
            near = difflib.get_close_matches(name, options, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(options)) or 'none'}"
            raise OptionError(f"{device} has no option {name}: {hint}")
        values[name] = parsed = _typed(option, value)
        expected = option.fault(parsed)
        if expected is not None:
            shown = value if isinstance(value, str) and value.isprintable() else repr(value)
            raise OptionError(f"option {name}={shown}: expected {expected}")
    return values


def _short(number: float) -> str:
    """``number`` as text. A large integer gets a suffix, or is written in hexadecimal, so that it is easy to read."""
    if not isinstance(number, int) or number < _LARGE:
        return str(number)
    for suffix, shift in reversed(_SUFFIXES.items()):
        if number % (1 << shift) == 0:
            return f"{number >> shift}{suffix}"
    return f"{number:#x}"


def _typed(option: Option[Any], value: object) -> Any:
    if isinstance(value, str):
        return option.parse(value)
    if isinstance(option.default, float) and type(value) is int:
        with contextlib.suppress(OverflowError):
            return float(value)
    elif isinstance(value, bool) == isinstance(option.default, bool) and isinstance(value, type(option.default)):
        return value
    raise OptionError(f"option {option.name}={value!r}: expected a value of type {option.type_name}")
