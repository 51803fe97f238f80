"""The entry point of ``bellwired``. If clients wait, the fork server loads beside the daemon, which takes as long."""

from __future__ import annotations

import os
from typing import NoReturn

from bellwired.workers import launch, process

STORED = "bellwire"
"""The first letters of the names that the daemon gives to descriptors in the service manager's store."""


def main() -> NoReturn:
    """Load and run the daemon. Its end is fast: the next daemon is started after it, and clients wait for that one."""
    early = None
    if any(name.startswith(STORED) for name in os.environ.get("LISTEN_FDNAMES", "").split(":")):
        process.allow_many_files()
        early = launch.fork_server()
    from bellwired.manager.main import main as daemon

    process.end(daemon(early=early))
