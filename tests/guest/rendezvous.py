"""Meeting a device at its socket."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

ACCEPTS = 1 << 16  # of a socket's flags in /proc/net/unix (Linux, include/uapi/linux/net.h: __SO_ACCEPTCON)
PATIENCE = 240.0  # seconds: what a guest says comes when it has booted, for which it has as long


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


def listens(path: Path) -> bool:
    """Whether somebody listens at ``path``: a socket has its name before. The name may be removed meanwhile."""
    rows = (line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return any(len(row) == 8 and row[7] == os.fspath(path) and int(row[3], 16) & ACCEPTS for row in rows)
