"""Mistakes of hooks: an error gets a note of what the guest did, and a wrong return value an error."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def note(error: Exception, doing: str) -> None:
    """Note in ``error`` what the guest did. The first note stays: it comes from the place nearest to the hook."""
    if not getattr(error, "__notes__", None):
        error.add_note(doing)


def number(hook: Callable[..., Any], given: Any) -> int:
    """What a read hook has returned, as an int. A TypeError that says where the hook is written, if it is none."""
    try:
        return int(given)
    except TypeError:
        code = inspect.unwrap(getattr(hook, "func", hook)).__code__
        name = code.co_qualname.rpartition("<locals>.")[2]
        raise TypeError(
            f"{name} ({code.co_filename}:{code.co_firstlineno}) returned {given!r}: a read hook returns the number "
            "that the guest reads"
        ) from None
