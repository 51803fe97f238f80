"""What happens to a device and its client, as its worker reports it to the manager."""

from __future__ import annotations

from bellwire.serve.observer import Observer
from bellwired.workers.outbox import Outbox
from vfio_user import Capabilities

MAPPED = 0.1  # seconds: closer changes of the client's memory maps are reported together


class Reporter(Observer):
    """Sends the device's events to the manager."""

    outbox: Outbox

    def __init__(self) -> None:
        self._maps: tuple[int, int] | None = None

    def connected(self, pid: int, uid: int) -> None:
        """A client has come."""
        self.outbox.tell("connected", pid=pid, uid=uid)

    def introduced(self, client: Capabilities) -> None:
        """The client has said what it supports."""
        self.outbox.tell("introduced", **client.to_json())

    def mapped(self, maps: int, size: int) -> None:
        """The client has changed its memory maps. Frequent changes are reported together, to spare the manager."""
        if self._maps is None:
            self.outbox.soon(MAPPED, self._tell_maps)
        self._maps = maps, size

    def left(self, reason: str) -> None:
        """The client has disconnected."""
        self._maps = None
        self.outbox.tell("left", reason=reason)

    def trouble(self, text: str) -> None:
        """A warning or an error was logged."""
        self.outbox.tell("trouble", text=text)

    def _tell_maps(self) -> None:
        if self._maps is not None:
            maps, size = self._maps
            self._maps = None
            self.outbox.tell("mapped", maps=maps, bytes=size)
