"""Meeting a device at its socket."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

PATIENCE = 60.0  # seconds


def joined(path: Path) -> socket.socket:
    """Connected to the socket that a device makes at ``path``, soon."""
    far = socket.socket(socket.AF_UNIX)
    far.settimeout(PATIENCE)
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"no socket {path}"
    far.connect(os.fspath(path))
    return far
