"""The server's end of a twin socket: its DMA messages go over it, if VERSION has agreed on one."""

from __future__ import annotations

import socket

from vfio_user.channel import Channel
from vfio_user.dma_requests import DmaRequests
from vfio_user.journal import Journal
from vfio_user.ledger import Estate, Kept, Ledger
from vfio_user.tap import Tap, tapped
from vfio_user.version import Capabilities


class ServerTwin:
    """Opens the socket for one session, and has ``requests`` use it. With a ``journal``, a successor can go on."""

    def __init__(
        self, requests: DmaRequests, limits: Capabilities, timeout: float, ledger: Ledger, *, journal: bool
    ) -> None:
        self._requests = requests
        self._limits = limits
        self._timeout = timeout
        self._ledger = ledger
        self._journaled = journal
        self._journal: Journal | None = None
        self._channel: Channel | None = None
        self._tap: Tap | None = None

    def open(self) -> int:
        """Make the socket pair. Returns the client's end, which the caller owns."""
        ours, theirs = socket.socketpair()
        self._ledger.keep(Kept("twin", {}, (ours.fileno(),)))
        self._use(ours, Estate())
        return theirs.detach()

    def take_over(self, estate: Estate) -> None:
        """Go on with the socket of a process that has ended, if it had one."""
        for fd in estate.take("twin"):
            self._use(socket.socket(fileno=fd), estate)
            self._requests.renumber()

    def tap(self, tap: Tap | None) -> None:
        """Show each message to ``tap``, or to nobody."""
        self._tap = tap
        if self._channel is not None:
            self._channel = tapped(self._channel, tap)
            self._requests.use_twin(self._channel)

    def close(self) -> None:
        """Close the socket."""
        if self._channel is not None:
            self._channel.close()
        if self._journal is not None:
            self._journal.close()

    def _use(self, ours: socket.socket, estate: Estate) -> None:
        if self._journaled:
            self._journal = Journal.of(self._limits, estate, self._ledger, "twin journal")
        self._channel = Channel(ours, self._limits.max_data_xfer_size, self._timeout, self._journal)
        if self._journal is not None:
            self._channel.resume(self._journal.found())
        self.tap(self._tap)
