"""The relay: where the kernel has no ioregionfds, the VMM sends their commands itself on a KVM exit.

The semantics are those of the kernel proposal, version 3. An access of 1, 2, 4 or 8 bytes that lies wholly in a region
becomes a command. One command is in flight on a socket; a posted write gets no response. All other accesses, and all
accesses after a hang-up, go by message.
"""

from __future__ import annotations

import threading

from vfio_user import IoRegionClient, IoRegionFd, VfioUserError

_WIDTHS = frozenset((1, 2, 4, 8))


class Relay:
    """One ioregionfd socket. Several sub-regions may share it, and vCPUs use it one at a time.

    After a device hangs up, sends a malformed answer, or does not answer in time, nothing more is sent to it.
    """

    def __init__(self, fd: int) -> None:
        self._client: IoRegionClient | None = IoRegionClient(fd)
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether the socket still works."""
        return self._client is not None

    def write(self, user_data: int, offset: int, data: bytes, *, posted: bool) -> bool:
        """Send a write, and wait for its response unless posted. Returns False if the relay has hung up."""
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
        """Send a read and wait for its response. Returns None if the relay has hung up."""
        with self._lock:
            if self._client is None:
                return None
            try:
                return self._client.read(user_data, offset, size)
            except VfioUserError:
                self._close()
                return None

    def hang_up(self) -> None:
        """Stop using the socket. All further accesses go by message."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


class RelayedRegion:
    """One sub-region and its socket. Without a ``relay`` the kernel serves it; an access that exits goes by message.

    ``exits`` counts the accesses that have exited to the VMM.
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
        """Whether an access goes to this region. A region of size 0 takes accesses of any width at its own address."""
        if self._exact:
            return offset == self.start
        return self.start <= offset and offset + size <= self.end and size in _WIDTHS

    def write(self, offset: int, data: bytes) -> bool:
        """Send a write. Returns False if it must go by message instead."""
        self.exits += 1
        if len(data) not in _WIDTHS or self._relay is None:
            return False
        return self._relay.write(self._user_data, offset - self.start, data, posted=self._posted)

    def read(self, offset: int, size: int) -> bytes | None:
        """Send a read and wait for its response. Returns None if it must go by message instead."""
        self.exits += 1
        return (
            None if self._exact or self._relay is None else self._relay.read(self._user_data, offset - self.start, size)
        )
