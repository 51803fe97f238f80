"""The sockets that ``bellwire vmm`` connects to: those of devices, and that of a VMM that waits for a guest."""

from __future__ import annotations

import socket
from pathlib import Path

from bellwire.paths import PathError
from bellwire.unix_sockets import check_peer, connect
from bellwired.errors import CommandError

ANSWER = 5.0  # seconds for a device to answer a message


def connected(path: Path, whose: str = "is a VMM listening there?") -> socket.socket:
    """A connection to the socket at ``path``, whose process gets the guest's memory. The caller owns it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.settimeout(ANSWER)
    try:
        connect(sock, path)
        check_peer(sock, path)
    except PathError as error:
        sock.close()
        raise CommandError(f"{path}: {error.strerror}", error.hint) from None
    except OSError as error:
        sock.close()
        raise CommandError(f"{path}: {error.strerror or error}; {whose}") from None
    return sock
