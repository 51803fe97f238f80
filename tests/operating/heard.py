"""A service manager that listens (sd_notify(3))."""

from __future__ import annotations

import queue
import socket
import threading
import time
from pathlib import Path

from operating.instance import PATIENCE


class Heard:
    """The far end of NOTIFY_SOCKET. It takes each datagram at once, since a full queue holds up the daemon."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._said: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(self.path))
        self._reader.join()
        self._sock.close()

    def _read(self) -> None:
        while text := self._sock.recv(4096).decode():
            self._said.put(dict(line.split("=", 1) for line in text.splitlines()))

    def until(self, key: str, patience: float = PATIENCE) -> dict[str, str]:
        """The next datagram with ``key`` in it."""
        deadline = time.monotonic() + patience
        while True:
            said = self._said.get(timeout=max(0, deadline - time.monotonic()))
            if key in said:
                return said

    def silence(self, key: str, seconds: float) -> bool:
        """Whether nothing with ``key`` in it comes for so long."""
        try:
            self.until(key, seconds)
        except queue.Empty:
            return True
        return False
