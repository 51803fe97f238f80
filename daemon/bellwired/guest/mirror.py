"""A peer for a network card: it sends each frame back to where it came from."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

LARGEST = 1 << 16
ADDRESSES = 12
"""Bytes of an Ethernet frame's two addresses."""


@contextlib.contextmanager
def mirror() -> Iterator[dict[str, str]]:
    """Options of a virtio-net whose frames come back, with their addresses exchanged, for the length of the block."""
    with TemporaryDirectory(prefix="bellwire-") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        there, here = Path(folder, "far"), Path(folder, "near")
        far.bind(str(there))
        thread = threading.Thread(target=_reflect, args=(far, here), name="bellwire mirror", daemon=True)
        thread.start()
        try:
            yield {"dgram": str(there), "local": str(here)}
        finally:
            far.shutdown(socket.SHUT_RDWR)
            thread.join()


def _reflect(far: socket.socket, here: Path) -> None:
    while frame := far.recv(LARGEST):
        if len(frame) > ADDRESSES:
            with contextlib.suppress(OSError):  # the card is not there, or takes no more
                far.sendto(frame[6:12] + frame[:6] + frame[12:], socket.MSG_DONTWAIT, str(here))
