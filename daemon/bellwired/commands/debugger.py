"""What ``breakpoint()`` in a hook does, and ``bellwire run --debug``: stop in pdb where a hook raises.

A guest waits while somebody thinks. QEMU gives up on an access after 5 s, and then takes the late answer for nonsense:
so a debugger needs a QEMU that is told to wait for longer.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from bdb import BdbQuit
from collections.abc import Callable
from types import FrameType
from typing import Any

from bellwire import BellwireError
from bellwired.workers.worker import Reporter

log = logging.getLogger("bellwire")


class BreakpointError(BellwireError):
    """``breakpoint()`` where nobody can answer it."""


class Debugging(Reporter):
    """Also stops in pdb where device code raises; ``q`` there ends the run."""

    def failed(self, error: BaseException) -> None:
        """At the place where it was raised."""
        debugger = _pdb()
        if not isinstance(error, BdbQuit) and error.__traceback__ is not None:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            debugger.reset()
            debugger.interaction(None, error.__traceback__)
        if isinstance(error, BdbQuit) or debugger.quitting:
            signal.raise_signal(signal.SIGTERM)


def refuse(why: str) -> Callable[..., None]:
    """A `sys.breakpointhook` that raises, so that nothing waits for an answer that cannot come."""

    def hook(*_: Any, **__: Any) -> None:
        frame = _caller()
        raise BreakpointError(f"{frame.f_code.co_filename}:{frame.f_lineno}: breakpoint(): {why}")

    return hook


def install(*, debugging: bool) -> None:
    """Have ``breakpoint()`` do what a run in the foreground can: a user's own PYTHONBREAKPOINT counts as ever."""
    if os.environ.get("PYTHONBREAKPOINT"):
        return
    if not sys.stdin.isatty() and not debugging:
        sys.breakpointhook = refuse("standard input is no terminal; run it in one, with bellwire run --debug")
        return

    def hook(*_: Any, **__: Any) -> None:
        if not debugging:
            log.warning("QEMU gives up on the device after 5 s of this: bellwire run --debug tells how to have it wait")
        _pdb().set_trace(_caller())

    sys.breakpointhook = hook


def _pdb() -> Any:
    """Which leaves Ctrl-C alone: it ends the run, as ever."""
    from pdb import Pdb

    return Pdb(nosigint=True)


def _caller() -> FrameType:
    """Of breakpoint(), which has no frame of its own."""
    return sys._getframe(2)
