"""The entry point of ``bellwired``. If clients wait, it forks the fork server off, and both load beside each other."""

from __future__ import annotations

import gc
import os
from importlib import import_module
from typing import NoReturn

from bellwired.workers import process

STORED = "bellwire"
"""The first letters of the names that the daemon gives to descriptors in the service manager's store."""
SHARED = ("bellwired.find", "bellwired.box.calls", "bellwired.workers.wire")
"""What daemon and fork server both need, with all that these import: half of either."""


def main() -> NoReturn:
    """Load and run the daemon.

    Clients wait at its start, and for its end, after which the next daemon starts. So it takes the shortest way.
    """
    gc.disable()  # there is no garbage in what is loaded
    early = None
    if any(name.startswith(STORED) for name in os.environ.get("LISTEN_FDNAMES", "").split(":")):
        for name in SHARED:
            import_module(name)
        from bellwired.workers import launch

        process.allow_many_files()
        early = launch.forked()
    from bellwired.manager.main import main as daemon

    gc.freeze()
    gc.enable()
    process.end(daemon(early=early))
