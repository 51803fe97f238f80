"""The listening socket of a device under the manager."""

from __future__ import annotations

import socket
from pathlib import Path

from bellwired.listen import Listener
from bellwired.settings import Device


class UnitSocket:
    """Listens at a path, or on ``given``, a listener from the service manager, which is used in place of a new one."""

    def __init__(self) -> None:
        self.given: socket.socket | None = None
        self._listener: Listener | None = None

    @property
    def is_open(self) -> bool:
        """Whether it listens on a socket of its own."""
        return self._listener is not None

    def address(self, path: Path) -> str:
        """Where clients find it, if its device's own path is ``path``."""
        return str(path if self.given is None else self.given.getsockname())

    def open(self, path: Path, settings: Device) -> socket.socket:
        """The listening socket. Raises a CommandError if it cannot be made."""
        if self.given is not None:
            return self.given
        if self._listener is None:
            self._listener = _listen(path, settings)
        return self._listener.socket

    def open_again(self, path: Path, settings: Device) -> None:
        """Make a socket of its own anew if that has lost its path. Raises a CommandError if the path is taken."""
        lost = self._listener
        if lost is not None and not lost.in_place():
            self._listener = _listen(path, settings)
            lost.close()

    def lend(self) -> tuple[socket.socket, tuple[int, int]] | None:
        """A socket of its own, with device and inode of its path, for another daemon. Its path stays from now on."""
        if self._listener is None or not self._listener.in_place():
            return None
        self._listener.lent = True
        return self._listener.socket, self._listener.identity

    def adopt(self, path: Path, sock: socket.socket, identity: tuple[int, int]) -> None:
        """Listen on a socket that another daemon has lent. Its path stays until :meth:`keep`."""
        listener = Listener.inherited(path, sock, identity)
        if listener.in_place():
            self._listener = listener
        else:
            sock.close()

    def keep(self) -> None:
        """The socket is this daemon's alone."""
        if self._listener is not None:
            self._listener.lent = False

    def is_lost(self, path: Path) -> bool:
        """Whether the socket has been removed or replaced, so that no client can find it."""
        if self.given is not None:
            return not Path(self.address(path)).is_socket()
        return self._listener is not None and not self._listener.in_place()

    def close(self) -> None:
        """Stop listening on a socket of its own."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def _listen(path: Path, settings: Device) -> Listener:
    return Listener(path, int(settings.mode, 8), settings.owner, settings.group)
