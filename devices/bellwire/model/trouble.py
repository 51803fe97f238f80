"""What a hook raises, and what it returns by mistake: told with what the guest did."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def note(error: Exception, doing: str) -> None:
    """Tell ``error`` what the guest did; what is nearest to the hook has been told first, and stays."""
    if not getattr(error, "__notes__", None):
        error.add_note(doing)


def number(hook: Callable[..., Any], given: Any) -> int:
    """What a read hook has returned; a TypeError says where it is written if that is no number."""
    try:
        return int(given)
    except TypeError:
        code = inspect.unwrap(getattr(hook, "func", hook)).__code__
        name = code.co_qualname.rpartition("<locals>.")[2]
        raise TypeError(
            f"{name} ({code.co_filename}:{code.co_firstlineno}) returned {given!r}: a read hook returns the number "
            "that the guest reads"
        ) from None
