"""Finds filters by name, and makes them of what a user wrote: ``delay:read=2ms,write=1ms``."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

from bellwire.filters import builtin as folder
from bellwire.filters.filter import Filter
from bellwire.filters.stack import FilterError

if TYPE_CHECKING:
    from bellwire.device import PciDevice

Found = dict[str, type[Filter]]
Plain = bool | int | float | str
LONGEST = 4096  # characters of what a user wrote
BUNDLED = "bellwire.bundled"
_NEXT = re.compile(r",(?=[A-Za-z][\w-]*=)")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter that a user wants: its name, and the arguments as the user wrote them."""

    name: str
    arguments: Mapping[str, Plain] = field(default_factory=dict)

    def __str__(self) -> str:
        given = ",".join(f"{key}={value}" for key, value in self.arguments.items())
        return f"{self.name}:{given}" if given else self.name

    def to_dict(self) -> dict[str, Plain]:
        """As a ``[[filter]]`` of a device's file has it."""
        return {"name": self.name, **self.arguments}


def parse(text: str) -> Wanted:
    """What ``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE`` asks for. A FilterError names the part that is wrong.

    A value may have commas, if no ``KEY=`` follows them.
    """
    if len(text) > LONGEST:
        raise FilterError(f"filter {text[:40]}...: {len(text)} characters, at most {LONGEST} expected")
    name, colon, rest = text.partition(":")
    if not name or "=" in name:
        raise FilterError(f"filter {text!r}: expected NAME or NAME:KEY=VALUE, as in delay:read=2ms")
    arguments: dict[str, Plain] = {}
    for part in _NEXT.split(rest) if colon else ():
        key, equals, value = part.partition("=")
        key = key.replace("-", "_")
        if not key or not equals:
            raise FilterError(f"filter {name}: {part!r}: expected KEY=VALUE")
        if key in arguments:
            raise FilterError(f"filter {name}: {key} is given twice")
        arguments[key] = value
    return Wanted(name, arguments)


def of_table(table: Mapping[str, Plain]) -> Wanted:
    """What a ``[[filter]]`` of a device's file asks for. A FilterError if it has no name."""
    name = table.get("name")
    if not isinstance(name, str) or not name:
        raise FilterError('a filter has no name: expected name = "trace", for example')
    return Wanted(name, {key.replace("-", "_"): value for key, value in table.items() if key != "name"})


@functools.cache
def builtin() -> Found:
    """The filters that come with Bellwire, by name."""
    found: Found = {}
    for module in pkgutil.walk_packages(folder.__path__, f"{folder.__name__}."):
        found |= defined_in(importlib.import_module(module.name))
    return found


def defined_in(module: ModuleType) -> Found:
    """The filters that a module defines, by name. A filter with an empty name is a base for others."""
    return {
        member.name: member
        for member in vars(module).values()
        if isinstance(member, type)
        and issubclass(member, Filter)
        and member.name
        and member.__module__ == module.__name__
    }


def of_device(kind: type[PciDevice]) -> Found:
    """The filters that belong to a device: those of its own module, and of the module ``filters`` of its package."""
    module = sys.modules.get(kind.__module__)
    if module is None:  # it was loaded from a file, and another one since
        return {}
    found = defined_in(module)
    package = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
    if package and package != BUNDLED and importlib.util.find_spec(f"{package}.filters") is not None:
        found |= defined_in(importlib.import_module(f"{package}.filters"))
    return found


def make(wanted: Wanted, known: Mapping[str, type[Filter]]) -> Filter:
    """Make a filter. A FilterError if there is none of the name, an OptionError for a wrong argument."""
    kind = known.get(wanted.name)
    if kind is None:
        near = difflib.get_close_matches(wanted.name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
        raise FilterError(f"there is no filter {wanted.name[:80]!r}: {hint}")
    return kind(**wanted.arguments)
