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
    while True:
        try:
            far.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):  # not there yet, or not listening
            if time.monotonic() > deadline:
                far.close()
                raise
        else:
            return far
