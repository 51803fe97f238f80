"""What a user may set on a device before it starts: ``-o KEY=VALUE``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
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
_SUFFIXES = {"K": 10, "M": 20, "G": 30, "T": 40}


class Option(Declared, Generic[Setting]):
    """``rate = Option(100, help="samples a second")``: an option whose default gives its type.

    Integers may be written in any base and with a suffix K, M, G or T (powers of 1024).
    """

    def __init__(self, default: Setting, *, help: str = "") -> None:
        self.default: Setting = default
        self.help = help

    def check(self, where: str) -> None:
        """Refuse a type that no command line could set."""
        if not isinstance(self.default, bool | int | float | str | Path):
            self.refuse(where, f"an option is a bool, int, float, str or Path, not {type(self.default).__name__}")

    def set(self, hook: SetHook) -> SetHook:
        """Let the option be changed while the device runs: ``hook(self, value)`` does so, or raises an OptionError."""
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
        """The word that help texts use for the type."""
        return "path" if isinstance(self.default, Path) else type(self.default).__name__

    def parse(self, text: str) -> Any:
        """The value that ``text`` stands for; an OptionError says what was expected."""
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
    """Check ``given`` (texts, or values of the right type) against what ``device`` declares."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        option = options.get(name)
        if option is None:
            near = difflib.get_close_matches(name, options, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(options)) or 'none'}"
            raise OptionError(f"{device} has no option {name}: {hint}")
        if isinstance(value, str):
            value = option.parse(value)
        elif isinstance(option.default, float) and type(value) is int:
            value = float(value)
        elif isinstance(value, bool) != isinstance(option.default, bool) or not isinstance(value, type(option.default)):
            raise OptionError(f"option {name}={value!r}: expected a value of type {option.type_name}")
        values[name] = value
    return values
