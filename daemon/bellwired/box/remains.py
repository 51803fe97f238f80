"""What a device leaves in folders in which its box lets it remove nothing: sockets, and links to terminals."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from bellwire.paths import Place
from bellwire.unix_sockets import clear, probe


def remove_made(path: Path) -> None:
    """Remove a socket on which nobody listens, or a link to a terminal. Raises an OSError for anything else."""
    with Place(path, follow=False) as place:
        found = place.status()
        if found is not None and stat.S_ISLNK(found.st_mode):
            if os.readlink(place.name, dir_fd=place.folder).startswith("/dev/pts/"):
                place.remove()
        else:
            clear(place, socket.SOCK_STREAM)


def is_live(path: Path) -> bool:
    """Whether somebody listens at ``path`` for streams. No, if that cannot be told."""
    with contextlib.suppress(OSError), Place(path) as place:
        pinned = place.pin()
        try:
            return stat.S_ISSOCK(os.fstat(pinned).st_mode) and probe(pinned) in (0, errno.EAGAIN)
        finally:
            os.close(pinned)
    return False
