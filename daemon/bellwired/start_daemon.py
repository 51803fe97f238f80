"""The entry point of ``bellwired``. If clients wait, the fork server loads beside the daemon, which takes as long."""

from __future__ import annotations

import os

from bellwired.workers import launch, process

STORED = "bellwire"
"""The first letters of the names that the daemon gives to descriptors in the service manager's store."""


def main() -> int:
    """Load and run the daemon."""
    early = None
    if any(name.startswith(STORED) for name in os.environ.get("LISTEN_FDNAMES", "").split(":")):
        process.allow_many_files()
        early = launch.fork_server()
    from bellwired.manager.main import main as daemon

    return daemon(early=early)
