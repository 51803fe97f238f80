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
from typing import Any

from bellwired.workers.breakpoints import caller, refuse_breakpoints
from bellwired.workers.worker import Reporter

log = logging.getLogger("bellwire")


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


def install(*, debugging: bool) -> None:
    """Have ``breakpoint()`` do what a run in the foreground can: a user's own PYTHONBREAKPOINT counts as ever."""
    if not debugging and not sys.stdin.isatty():
        refuse_breakpoints("standard input is no terminal: run it in one, with bellwire run --debug")
        return

    def hook(*_: Any, **__: Any) -> None:
        if not debugging:
            log.warning("QEMU gives up on the device after 5 s of this: bellwire run --debug tells how to have it wait")
        _pdb().set_trace(caller())

    if not os.environ.get("PYTHONBREAKPOINT"):
        sys.breakpointhook = hook


def _pdb() -> Any:
    """Which leaves Ctrl-C alone: it ends the run, as ever."""
    from pdb import Pdb

    return Pdb(nosigint=True)
