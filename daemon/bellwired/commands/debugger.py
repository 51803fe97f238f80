"""What ``breakpoint()`` in a hook does, and ``bellwire run --debug``: stop in pdb where a hook raises.

The guest waits while the user works in pdb. QEMU gives up on an access after 5 s, and then rejects the late answer:
so a debugger needs a QEMU with a longer ``x-msg-timeout``.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from bdb import BdbQuit
from collections.abc import Callable
from typing import Any

from bellwired.workers.breakpoints import caller, refuse_breakpoints
from bellwired.workers.reporter import Reporter

log = logging.getLogger("bellwire")


class Debugging(Reporter):
    """Also stops in pdb where device code raises; ``q`` there ends the run."""

    def failed(self, error: BaseException) -> None:
        """Start pdb at the place where the exception was raised."""
        debugger = _pdb()
        if not isinstance(error, BdbQuit) and error.__traceback__ is not None:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            debugger.reset()
            debugger.interaction(None, error.__traceback__)
        if isinstance(error, BdbQuit) or debugger.quitting:
            signal.raise_signal(signal.SIGTERM)


def install(*, debugging: bool, stopping: Callable[[], None]) -> None:
    """Have ``breakpoint()`` start pdb in a run in the foreground. A user's own PYTHONBREAKPOINT takes precedence.

    ``stopping`` is called before a hook stops there, or now if PYTHONBREAKPOINT may stop it without telling.
    """
    if os.environ.get("PYTHONBREAKPOINT", "0") != "0":
        stopping()
    if not debugging and not sys.stdin.isatty():
        refuse_breakpoints("standard input is no terminal: run it in one, with bellwire run --debug")
        return

    def hook(*_: Any, **__: Any) -> None:
        if not debugging:
            log.warning("QEMU gives up on the device after 5 s of this: bellwire run --debug tells how to have it wait")
        stopping()
        _pdb().set_trace(caller())

    if not os.environ.get("PYTHONBREAKPOINT"):
        sys.breakpointhook = hook


def _pdb() -> Any:
    """A pdb that does not handle Ctrl-C: it ends the run, as without pdb."""
    from pdb import Pdb

    return Pdb(nosigint=True)
