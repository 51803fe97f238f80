"""Hooks: plain methods that a decorator has tied to a declaration.

The decorator does not wrap the method; it only records the tie on it. So a subclass may override the method by name,
or tie another method to the same register (``@Base.ack.write``). The tie of the most derived class counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from bellwire.declare.declared import Declared
from bellwire.errors import DeclarationError

Function = TypeVar("Function", bound=Callable[..., Any])
Tie = tuple[str, Declared]

_TIES = "__bellwire_ties__"


def mark(function: Function, event: str, target: Declared) -> Function:
    """Tie ``function`` to the ``event`` (read, write, ring, set or request) of ``target``. It may have several ties."""
    ties: tuple[Tie, ...] = getattr(function, _TIES, ())
    setattr(function, _TIES, (*ties, (event, target)))
    return function


def collect(device: type[Any]) -> dict[Tie, str]:
    """The name of the method that each event of each declaration runs, over ``device`` and all its bases.

    A DeclarationError if one class ties two methods to the same event.
    """
    found: dict[Tie, str] = {}
    for ancestor in reversed(device.__mro__):
        own: dict[Tie, str] = {}
        for name, member in vars(ancestor).items():
            for tie in getattr(member, _TIES, ()):
                other = own.setdefault(tie, name)
                if vars(ancestor)[other] is not member:
                    event, target = tie
                    raise DeclarationError(
                        f"{ancestor.__qualname__}: {other} and {name} are both the {event} hook of {target.name}: "
                        "only one could run",
                        (member.__code__.co_filename, member.__code__.co_firstlineno),
                    )
        found |= own
    return found
