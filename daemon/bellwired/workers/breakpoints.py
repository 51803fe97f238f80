"""``breakpoint()`` where nobody can answer it."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any

from bellwire import BellwireError


class BreakpointError(BellwireError):
    """It was called there."""


def refuse_breakpoints(why: str) -> None:
    """Have ``breakpoint()`` raise, rather than wait for an answer that cannot come. PYTHONBREAKPOINT counts as ever."""

    def hook(*_: Any, **__: Any) -> None:
        frame = caller()
        raise BreakpointError(f"{frame.f_code.co_filename}:{frame.f_lineno}: breakpoint(): {why}")

    if not os.environ.get("PYTHONBREAKPOINT"):
        sys.breakpointhook = hook


def caller() -> FrameType:
    """Of ``breakpoint()``, which has no frame of its own; for the hook itself to call."""
    return sys._getframe(2)
