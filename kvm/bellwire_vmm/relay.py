"""The relay: where the kernel has no ioregionfds, the VMM speaks their wire itself on a KVM exit.

Same semantics as the kernel proposal's (version 3): an access that lies wholly in a region and is 1, 2, 4 or
8 bytes wide becomes a command; one command is in flight per socket; posted writes are not waited for.
Everything else, and everything after a hang-up, is left to messages.
"""

from __future__ import annotations

from vfio_user import IoRegionClient, IoRegionFd, VfioUserError

_WIDTHS = frozenset((1, 2, 4, 8))


class Relay:
    """One ioregionfd socket, which several sub-regions may share."""

    def __init__(self, fd: int) -> None:
        self.client: IoRegionClient | None = IoRegionClient(fd)

    def hang_up(self) -> None:
        """Speak no more."""
        client, self.client = self.client, None
        if client is not None:
            client.close()


class RelayedRegion:
    """One sub-region on its socket."""

    __slots__ = ("_exact", "_relay", "end", "region", "start")

    def __init__(self, region: IoRegionFd, relay: Relay) -> None:
        self.region = region
        self.start = region.offset
        self.end = region.offset + region.size
        self._exact = region.size == 0
        self._relay = relay

    @property
    def alive(self) -> bool:
        """Whether the socket still works."""
        return self._relay.client is not None

    def covers(self, offset: int, size: int) -> bool:
        """Whether an access goes to this region. Size 0 means its very address, at any width."""
        if self._exact:
            return offset == self.start
        return self.start <= offset and offset + size <= self.end and size in _WIDTHS

    def write(self, offset: int, data: bytes) -> bool:
        """Send a write; False when it must go by message instead."""
        client = self._relay.client
        if client is None or (self._exact and len(data) not in _WIDTHS):
            return False
        region = self.region
        try:
            if region.posted_writes:
                client.post(region.user_data, offset - self.start, data)
            else:
                client.write(region.user_data, offset - self.start, data)
        except VfioUserError:
            self._relay.hang_up()
            return False
        return True

    def read(self, offset: int, size: int) -> bytes | None:
        """Send a read and wait; None when it must go by message instead."""
        client = self._relay.client
        if client is None or self._exact:
            return None
        try:
            return client.read(self.region.user_data, offset - self.start, size)
        except VfioUserError:
            self._relay.hang_up()
            return None
