"""One pair of queues of a network card."""

from __future__ import annotations

from bellwire.network import LARGEST_PACKET, LinkEnd
from bellwire.virtio import Chain


class Lane:
    """One pair of queues at run time: its end of the link, and a packet that waits for a buffer of the guest."""

    def __init__(self, number: int, end: LinkEnd) -> None:
        self.number = number
        self.end = end
        self.buffer = memoryview(bytearray(LARGEST_PACKET))
        self.size = 0
        """The size of the packet that waits in ``buffer``; 0 if none does."""
        self.watched: int | None = None
        """The descriptor that is watched, if one is."""
        self.waits_for_turn = False
        self.buffers = 1
        """The number of buffers that the next packet is received into: as many as one of this turn or the last took."""
        self.most = 0
        """The most buffers that a packet of this turn took, of those that were not received as a batch."""
        self.ready: list[Chain] = []
        """Buffers that were taken, and are not used yet; only within :meth:`VirtioNet.receive`."""
        self.filled: list[Chain] = []
        """Buffers with packets, not returned yet."""
        self.likely = 1
        """The number of packets of the last turn. In the next, so many buffers and one more are taken first."""
        self.drained = False
        """Whether the link had no more packets."""
        self.starved = False
        """Whether there is no use for packets now: the guest has no buffers, and tells of more; or the link is gone."""
        self._rest = self.buffer

    def end_turn(self, packets: int) -> None:
        """So many packets came. If none of them was large, the next ones are received into one buffer each again."""
        self.likely = packets
        if packets:
            self.buffers, self.most = max(1, self.most), 0

    def after(self, room: int) -> memoryview:
        """The end of ``buffer``, for what exceeds ``room`` bytes in the guest's buffers."""
        if len(self._rest) != LARGEST_PACKET - room:
            self._rest = self.buffer[room:]
        return self._rest
