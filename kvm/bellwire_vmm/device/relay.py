"""The relay: where the kernel has no ioregionfds, the VMM speaks their wire itself on a KVM exit.

Same semantics as the kernel proposal's (version 3): an access that lies wholly in a region and is 1, 2, 4 or
8 bytes wide becomes a command; one command is in flight per socket; posted writes are not waited for.
Everything else, and everything after a hang-up, is left to messages.
"""

from __future__ import annotations

import threading

from vfio_user import IoRegionClient, IoRegionFd, VfioUserError

_WIDTHS = frozenset((1, 2, 4, 8))


class Relay:
    """One ioregionfd socket, which several sub-regions may share and several vCPUs use: one at a time.

    A device that does not play its part (it hangs up, answers nonsense, or not in time) is not spoken to
    again.
    """

    def __init__(self, fd: int) -> None:
        self._client: IoRegionClient | None = IoRegionClient(fd)
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether the socket still works."""
        return self._client is not None

    def write(self, user_data: int, offset: int, data: bytes, *, posted: bool) -> bool:
        """Send a write, and wait for its acknowledgement unless it is posted; False if that cannot be."""
        with self._lock:
            if self._client is None:
                return False
            try:
                (self._client.post if posted else self._client.write)(user_data, offset, data)
            except VfioUserError:
                self._close()
                return False
            return True

    def read(self, user_data: int, offset: int, size: int) -> bytes | None:
        """Send a read and wait for its answer; None if that cannot be."""
        with self._lock:
            if self._client is None:
                return None
            try:
                return self._client.read(user_data, offset, size)
            except VfioUserError:
                self._close()
                return None

    def hang_up(self) -> None:
        """Speak no more."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


class RelayedRegion:
    """One sub-region on its socket; without a ``relay`` the kernel's, and what comes here goes by message.

    ``exits`` counts the accesses that have left the guest.
    """

    __slots__ = ("_exact", "_posted", "_relay", "_user_data", "end", "exits", "start")

    def __init__(self, region: IoRegionFd, relay: Relay | None) -> None:
        self.exits = 0
        self.start = region.offset
        self.end = region.offset + region.size
        self._exact = region.size == 0
        self._posted = region.posted_writes
        self._user_data = region.user_data
        self._relay = relay

    def covers(self, offset: int, size: int) -> bool:
        """Whether an access goes to this region. Size 0 means its very address, at any width."""
        if self._exact:
            return offset == self.start
        return self.start <= offset and offset + size <= self.end and size in _WIDTHS

    def write(self, offset: int, data: bytes) -> bool:
        """Send a write; False when it must go by message instead."""
        self.exits += 1
        if len(data) not in _WIDTHS or self._relay is None:
            return False
        return self._relay.write(self._user_data, offset - self.start, data, posted=self._posted)

    def read(self, offset: int, size: int) -> bytes | None:
        """Send a read and wait; None when it must go by message instead."""
        self.exits += 1
        return (
            None if self._exact or self._relay is None else self._relay.read(self._user_data, offset - self.start, size)
        )
