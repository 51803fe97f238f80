"""``breakpoint()`` in a process without a terminal."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any

from bellwire import BellwireError


class BreakpointError(BellwireError):
    """``breakpoint()`` was called where no user can answer."""


def refuse_breakpoints(why: str) -> None:
    """Have ``breakpoint()`` raise, because no user can answer it. A user's PYTHONBREAKPOINT takes precedence."""

    def hook(*_: Any, **__: Any) -> None:
        frame = caller()
        raise BreakpointError(f"{frame.f_code.co_filename}:{frame.f_lineno}: breakpoint(): {why}")

    if not os.environ.get("PYTHONBREAKPOINT"):
        sys.breakpointhook = hook


def caller() -> FrameType:
    """Of ``breakpoint()``, which has no frame of its own; for the hook itself to call."""
    return sys._getframe(2)
