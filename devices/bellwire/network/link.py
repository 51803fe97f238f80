"""What a network card has at its other side."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from typing import Protocol

from bellwire.errors import BellwireError

HEADER_SIZE = 12
"""Of struct virtio_net_hdr with num_buffers (§5.1.6), which a VERSION_1 device always has."""
LARGEST_PACKET = HEADER_SIZE + 14 + 65536
"""Header, Ethernet header, and the most that segmentation offload leaves in one piece."""
SMALLEST_PACKET = HEADER_SIZE + 14

Buffers = Sequence[memoryview]


class LinkError(BellwireError):
    """A link that cannot be made as it was asked for."""


class Offload(IntFlag):
    """What the guest takes over from the sender (linux/if_tun.h, TUN_F_*)."""

    CHECKSUM = 0x01
    TSO4 = 0x02
    TSO6 = 0x04
    ECN = 0x08


class LinkEnd(Protocol):
    """One pair of queues' end of a link. No method waits."""

    def fileno(self) -> int:
        """Readable while there is a packet; -1 while nobody is there."""

    def receive(self, buffer: memoryview) -> int:
        """The next packet, header first, into ``buffer``: its size, or 0 when there is none now.

        A LinkError when none will ever come again.
        """

    def send(self, packet: Buffers) -> bool:
        """A packet, header first, in any number of pieces; False when it had to be dropped."""


class Link(Protocol):
    """All ends of one card."""

    @property
    def ends(self) -> Sequence[LinkEnd]:
        """One for each pair of queues."""

    @property
    def offloads(self) -> bool:
        """Whether headers mean anything here: checksums and segmentation may be left to others."""

    def offload(self, what: Offload) -> None:
        """What the guest has agreed to take in packets for it."""

    def use(self, pairs: int) -> None:
        """How many of the ends are in use from now on."""

    def carrier(self, up: bool) -> None:
        """Show the other side that the cable is plugged in, or is not."""

    def close(self) -> None:
        """Leave."""
