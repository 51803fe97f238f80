"""Finds misspelt attributes: reads the bytecode of a device class's methods when the class is made.

A device makes its own attributes in ``__init__``, ``setup``, ``reset`` or ``restored``, in a method that one of these
calls, or in the class body. An assignment to any other attribute is taken for a misspelt name. Python would make a new
attribute of it at run time, and the register would keep its value. The check runs once for each class, and costs
nothing at run time.
"""

from __future__ import annotations

import difflib
import dis
import inspect
import sys
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from bellwire.errors import DeclarationError

MAKERS = ("__init__", "setup", "reset", "restored")
_STORE = dis.opmap["STORE_ATTR"]


class Store(NamedTuple):
    """An assignment ``self.name = ...``, and its line."""

    name: str
    line: int


def check_methods(device: type[Any]) -> None:
    """Raise a DeclarationError for an ``__init__`` without ``super().__init__()``, and for a misspelt attribute."""
    _check_init(device)
    made: set[str] | None = None
    for name, function in _functions(device):
        for store in _stores(function.__code__):
            if hasattr(device, store.name) or _annotated(device, store.name):
                continue
            if made is None:
                made = _made(device)
            if store.name not in made:
                _refuse(device, name, function, store, made)


def _check_init(device: type[Any]) -> None:
    own = vars(device).get("__init__")
    if isinstance(own, FunctionType) and "__init__" not in own.__code__.co_names:
        raise DeclarationError(
            f"{device.__qualname__}.__init__ does not call super().__init__(**options): "
            "the device would have no registers; or do in setup() what it does",
            (own.__code__.co_filename, own.__code__.co_firstlineno),
        )


def _refuse(device: type[Any], method: str, function: FunctionType, store: Store, made: set[str]) -> None:
    known = [name for name in (*made, *dir(device)) if not name.startswith("__")]
    near = difflib.get_close_matches(store.name, known, n=1)
    hint = f"did you mean {near[0]}? If not, name" if near else "name"
    raise DeclarationError(
        f"{device.__qualname__}.{method} assigns self.{store.name}, which the device does not have: {hint} it in the "
        "class body, or make it in __init__, setup() or reset()",
        (function.__code__.co_filename, store.line),
    )


def _functions(owner: type[Any]) -> Iterator[tuple[str, FunctionType]]:
    """The methods that ``owner`` itself defines, including getters and setters of properties.

    A static method is none: what it assigns to its first argument is not the device's.
    """
    for name, member in vars(owner).items():
        if isinstance(member, staticmethod):
            continue
        found = (member.fget, member.fset) if isinstance(member, property) else (member,)
        for each in found:
            function = inspect.unwrap(each) if callable(each) else each
            if isinstance(function, FunctionType):
                yield name, function


def _made(device: type[Any]) -> set[str]:
    """The attributes that the methods in MAKERS assign, and the methods that these call, in all base classes."""
    methods: dict[str, list[CodeType]] = {}
    for ancestor in device.__mro__[:-1]:
        for name, function in _functions(ancestor):
            methods.setdefault(name, []).append(function.__code__)
    made: set[str] = set()
    seen: set[str] = set()
    waiting = [*MAKERS, "__init_subclass__"]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in methods:
            continue
        seen.add(name)
        for code in methods[name]:
            made.update(store.name for store in _stores(code))
            waiting += _called(code)
    return made


def _annotated(device: type[Any], name: str) -> bool:
    return any(name in vars(ancestor).get("__annotations__", ()) for ancestor in device.__mro__)


def _called(code: CodeType) -> Iterator[str]:
    """The names of all methods that ``code`` and the functions inside it call, on any object."""
    for instruction in dis.get_instructions(code):
        match instruction.opname:
            case "LOAD_METHOD" | "LOAD_SUPER_ATTR":
                yield instruction.argval
            case "LOAD_ATTR" if sys.version_info >= (3, 12) and (instruction.arg or 0) & 1:
                yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _called(constant)


@lru_cache(maxsize=4096)
def _stores(code: CodeType) -> tuple[Store, ...]:
    """The attributes that a method assigns to its first argument."""
    if not code.co_argcount or _STORE not in code.co_code[::2]:
        return ()
    this, line, before, found = code.co_varnames[0], code.co_firstlineno, None, []
    for instruction in dis.get_instructions(code):
        if instruction.positions is not None and instruction.positions.lineno is not None:
            line = instruction.positions.lineno
        if instruction.opname == "STORE_ATTR" and before is not None and _loads(before, this):
            found.append(Store(instruction.argval, line))
        before = instruction
    return tuple(found)


def _loads(instruction: dis.Instruction, name: str) -> bool:
    """Whether the instruction leaves the local variable ``name`` on top of the stack.

    Newer Pythons have instructions that load two variables; the last one is on top.
    """
    if "LOAD_FAST" not in instruction.opname:
        return False
    loaded = instruction.argval
    return bool(loaded[-1] == name if isinstance(loaded, tuple) else loaded == name)
