"""What a device leaves in folders in which its box lets it remove nothing: sockets, and links to terminals."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from bellwire.paths import Place
from bellwire.unix_sockets import clear


def remove_made(path: Path) -> None:
    """Remove a socket on which nobody listens, or a link to a terminal. Raises an OSError for anything else."""
    with Place(path, follow=False) as place:
        found = place.status()
        if found is not None and stat.S_ISLNK(found.st_mode):
            if os.readlink(place.name, dir_fd=place.folder).startswith("/dev/pts/"):
                place.remove()
        else:
            clear(place, socket.SOCK_STREAM)
