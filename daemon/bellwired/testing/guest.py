"""The keywords of ``machine()`` that are for the guest: they are checked when tests are collected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import UnionType
from typing import Any, get_origin, get_type_hints

from bellwired.guest.plan import HOST, MIB, MINIMAL, Plan

OURS = ("devices", "listeners")
"""Fields of the plan that a machine for tests sets itself."""
LEAST_MEMORY = 128 * MIB
_SIZE = re.compile(r"([1-9]\d{0,5})([MG])")


def checked(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords, with ``memory`` in bytes: it may be a text such as ``"512M"``.

    Raises a TypeError for a keyword that a guest does not have, and for a value of another type than the field's of
    :class:`bellwired.guest.plan.Plan`; a ValueError for a root that there is not, and for too little memory.
    """
    kinds = {name: kind for name, kind in get_type_hints(Plan).items() if name not in OURS}
    guest = dict(keywords)
    memory = guest.get("memory")
    if isinstance(memory, str) and (found := _SIZE.fullmatch(memory)):
        guest["memory"] = int(found[1]) * (1024 * MIB if found[2] == "G" else MIB)
    for name, value in guest.items():
        if name not in kinds:
            raise TypeError(f"machine() has no {name}=: a guest has {', '.join(kinds)}")
        kind = kinds[name] if isinstance(kinds[name], type | UnionType) else get_origin(kinds[name])
        kind = int | float if kind is float else kind
        if not isinstance(value, kind) or (isinstance(value, str) and kind is not str):
            example = ' or a text such as "512M"' if name == "memory" else ""
            raise TypeError(f"{name}={value!r}: expected {getattr(kind, '__name__', kind)}{example}")
    if guest.get("root", HOST) not in (HOST, MINIMAL):
        raise ValueError(f"root={guest['root']!r}: expected {HOST!r} or {MINIMAL!r}")
    if guest.get("memory", LEAST_MEMORY) < LEAST_MEMORY:
        raise ValueError(f'memory={memory!r}: expected bytes or a text such as "512M", and at least 128 MiB')
    return guest
