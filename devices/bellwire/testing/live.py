"""A live device: what a test's thread sees of a device that another thread runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import PurePath
from typing import Any

_VALUES = (int, float, complex, str, bytes, bytearray, Enum, PurePath, type, type(None))
MOST = 64 << 20  # bytes of memory that are copied


class Live:
    """A device of another thread, or a part of one: a row of a block, a doorbell, the vectors of an interrupt.

    Each use of an attribute, an index or a method runs on the device's thread, between two turns of its loop, and after
    all that the guest has written and rung until then. So no hook runs at the same time, and the test sees what the
    guest's last access has led to. ``live.status`` reads the register's stored value, and ``live.status = 1`` stores
    one: neither runs a hook. ``live.read_bar(...)`` and ``live.write_bar(...)`` access a BAR as the guest would, with
    hooks.

    Numbers, texts, enums and containers of them are copied; a view of memory is copied as bytes, up to 64 MiB. Any
    other object is wrapped as the device is. What a method raises comes out of its call.
    """

    __slots__ = ("__call", "__target")

    def __init__(self, call: Callable[..., Any], target: object) -> None:
        object.__setattr__(self, "_Live__call", call)
        object.__setattr__(self, "_Live__target", target)

    def __getattr__(self, name: str) -> Any:
        return self.__run(getattr, name)

    def __setattr__(self, name: str, value: object) -> None:
        self.__run(setattr, name, value)

    def __getitem__(self, index: Any) -> Any:
        return self.__run(lambda target, index: target[index], index)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call it on the device's thread."""
        return self.__run(lambda target, *arguments: target(*arguments, **keywords), *arguments)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.__run(list))

    def __len__(self) -> int:
        return int(self.__run(len))

    def __bool__(self) -> bool:
        return bool(self.__run(bool))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Live) and self.__target is other.__target

    def __hash__(self) -> int:
        return id(self.__target)

    def __repr__(self) -> str:
        return f"<live {self.__run(repr)}>"

    def __dir__(self) -> list[str]:
        return list(self.__run(dir))

    def __run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        call, target = self.__call, self.__target
        plain = [argument.__target if isinstance(argument, Live) else argument for argument in arguments]
        return call(lambda: shown(call, function(target, *plain)))


def shown(call: Callable[..., Any], value: Any) -> Any:
    """``value`` as a test's thread may keep it: a copy, or wrapped in a :class:`Live`. Runs on the device's thread."""
    if isinstance(value, _VALUES):
        return value
    if isinstance(value, memoryview):
        if value.nbytes > MOST:
            raise ValueError(
                f"{value.nbytes} bytes are too many to copy, at most {MOST}: read_bar() reads some of them"
            )
        return bytes(value)
    if isinstance(value, dict):
        return {shown(call, key): shown(call, each) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(shown(call, each) for each in value))
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(shown(call, each) for each in value)
    if isinstance(value, deque):
        return deque((shown(call, each) for each in value), value.maxlen)
    return Live(call, value)
