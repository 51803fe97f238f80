"""A service manager with a store of descriptors (FDSTORE=1 in sd_notify(3)), which is no systemd."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from operating.heard import Heard

APART = 100  # above the numbers that a process is passed its descriptors under


class FdKeeper(Heard):
    """The far end of NOTIFY_SOCKET. What it stores can be passed to the next process."""

    def _read(self) -> None:
        self._stored: dict[str, list[int]] = {}
        while True:
            data, fds, _, _ = socket.recv_fds(self._sock, 4096, 8)
            if not data:
                break
            said = dict(line.split("=", 1) for line in data.decode().splitlines())
            if "FDSTORE" in said:
                self._stored.setdefault(said["FDNAME"], []).extend(fds)
            elif "FDSTOREREMOVE" in said:
                for fd in self._stored.pop(said["FDNAME"], []):
                    os.close(fd)
            self._said.put(said)
        for kept in self._stored.values():
            for fd in kept:
                os.close(fd)

    @property
    def names(self) -> list[str]:
        """The names of what is stored, in order."""
        return sorted(name for name, kept in list(self._stored.items()) for _ in kept)

    def passed(self) -> dict[str, socket.socket]:
        """What is stored, for the next process. The caller owns it."""
        copies = [
            (name, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, APART)) for name, fds in self._stored.items() for fd in fds
        ]
        return {name: socket.socket(fileno=fd) for name, fd in copies}

    def in_flight(self, name: str) -> int:
        """The descriptors in the messages that a stored socket has (Linux 5.8)."""
        lines = Path(f"/proc/self/fdinfo/{self._stored[name][0]}").read_text().splitlines()
        return next(int(line.partition(":")[2]) for line in lines if line.startswith("scm_fds"))
