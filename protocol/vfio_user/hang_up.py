"""The end of a connection, as its peer shall see it."""

from __future__ import annotations

import contextlib
import socket

_CHUNK = 1 << 16
_MOST = 256  # chunks: more than the kernel holds for a UNIX socket


def hang_up(fd: int) -> None:
    """End the connection of the UNIX stream socket ``fd``, which stays open: the peer reads an end of file.

    What the peer has sent and nobody has read is thrown away. A close would otherwise give the peer ECONNRESET (Linux,
    net/unix/af_unix.c, unix_release_sock), and QEMU 11.1.3 aborts at that. Any other descriptor is left alone.
    """
    with contextlib.suppress(OSError):
        sock = socket.socket(fileno=fd)
        try:
            sock.shutdown(socket.SHUT_RDWR)
            for _ in range(_MOST):
                if not sock.recv(_CHUNK, socket.MSG_DONTWAIT):
                    break
        finally:
            sock.detach()
