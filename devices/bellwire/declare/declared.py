"""The base of all declarations in a device class: a name, an owner, and an error that names both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, NoReturn, Self

from bellwire.errors import DeclarationError

_HERE = str(Path(__file__).parent)
_HOOKS = ("read", "write", "ring", "set", "request")


class NoSuchHook(DeclarationError, AttributeError):
    """A class ties a method to an event that this kind of declaration does not have."""


class _NoHook:
    """Takes the place of a decorator that this kind of declaration lacks. Its error names those that it has.

    A ``__getattr__`` could raise the same error, but would slow down every access to an attribute of a declaration:
    a posted write to a register took 5.8 µs with one, and takes 4.4 µs without.
    """

    def __set_name__(self, _owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, declared: object, kind: type[Any]) -> NoReturn:
        if declared is None:
            raise AttributeError(self._name)
        has = " and ".join(f".{hook}" for hook in _HOOKS if hasattr(kind, hook))
        why = f"tie the method by {has}" if has else "no hook can be tied to it"
        raise NoSuchHook(f"a declaration of type {kind.__name__} has no .{self._name}: {why}")


class Declared:
    """Something assigned in the body of a device class. Python gives it its name by ``__set_name__``."""

    name = "?"
    owner = "?"
    row: int | None = None
    """The index of the row of a block that it belongs to; None outside blocks."""
    place: tuple[str, int] | None
    """File and line of the declaration."""

    def __new__(cls, *_arguments: Any, **_keywords: Any) -> Self:
        """Remember the line that declares it: the nearest caller outside the SDK's own declarations."""
        declared = super().__new__(cls)
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
            frame = frame.f_back
        declared.place = frame.f_code.co_filename, frame.f_lineno
        return declared

    def __set_name__(self, owner: type[Any], name: str) -> None:
        if self.name == "?":  # an alias, or a subclass that repeats the assignment, keeps the first name
            self.name = name
            self.owner = owner.__qualname__

    def __set__(self, device: Any, value: Never) -> None:
        """Refuse the assignment: the new attribute would hide the declaration, and would be missing in snapshots."""
        kind = type(self).__name__
        raise AttributeError(f"{self} is a {kind}: only what is in it can be changed, as by {self.name}[:]")

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"

    def refuse(self, where: str, why: str) -> NoReturn:
        """Raise a DeclarationError with ``why`` and the file and line; ``where`` is the class that is being defined."""
        raise DeclarationError(f"{where}.{self.name}: {why}", self.place)

    if not TYPE_CHECKING:
        read = _NoHook()
        write = _NoHook()
        ring = _NoHook()
        set = _NoHook()
        request = _NoHook()


def is_power_of_two(number: int) -> bool:
    """Whether ``number`` is 1, 2, 4, ..."""
    return number > 0 and not number & (number - 1)


def hexadecimal(number: int) -> str:
    """``number`` in hexadecimal, as datasheets print it; a negative number keeps its sign."""
    return f"{number:#x}"
