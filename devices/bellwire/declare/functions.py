"""Several functions of one device: ``functions = [Engine, Console]`` in the device's file (PCI 3.0 §3.2.2.3.4)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bellwire.errors import DeclarationError

if TYPE_CHECKING:
    from bellwire.device import PciDevice

NAME = "functions"
MOST = 8


def functions_of(kind: type[PciDevice]) -> tuple[type[PciDevice], ...]:
    """The functions of the device that ``kind`` belongs to, in the order of their numbers.

    ``kind`` alone if it has no others. They are in a list with the name ``functions``, in the module of ``kind`` or
    in a package around it. A DeclarationError for a list that cannot be the functions of a device.
    """
    for listed in _lists(kind.__module__):
        if kind in listed:
            return checked(listed, f"{NAME} of {kind.__module__}")
    return (kind,)


def checked(listed: list[Any] | tuple[Any, ...], where: str) -> tuple[type[PciDevice], ...]:
    """The functions in a list. A DeclarationError that begins with ``where`` if they cannot be those of a device."""
    for item in listed:
        if getattr(item, "identity", None) is None:
            raise DeclarationError(
                f"{where}: {item!r} is no device: list classes with vendor=, device= and class_code="
            )
    if not 1 <= len(listed) <= MOST:
        raise DeclarationError(f"{where}: a device has 1 to {MOST} functions, not {len(listed)}")
    if len(set(listed)) != len(listed):
        raise DeclarationError(f"{where}: a class is listed twice: derive another one from it, with a name of its own")
    return tuple(listed)


def _lists(module: str) -> Iterator[list[Any] | tuple[Any, ...]]:
    """What modules call ``functions``: the module itself, then the packages around it."""
    while module:
        found = getattr(sys.modules.get(module), NAME, None)
        if isinstance(found, list | tuple):
            yield found
        module = module.rpartition(".")[0]
