"""The interface of links: what a network card is connected to."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from typing import NamedTuple, Protocol

from bellwire.errors import BellwireError

HEADER_SIZE = 12
"""Bytes of struct virtio_net_hdr with num_buffers (§5.1.6). A VERSION_1 device always has this field."""
LARGEST_PACKET = HEADER_SIZE + 14 + 65536
"""Bytes of the header, the Ethernet header, and the largest payload with segmentation offload."""
SMALLEST_PACKET = HEADER_SIZE + 14

Buffers = Sequence[memoryview]
NUM_BUFFERS = slice(10, 12)
"""Where the header has the number of buffers that the packet takes (§5.1.6)."""
ONE_BUFFER = b"\1\0"


class Places(NamedTuple):
    """Where packets lie or are to lie in guest memory, one after the other."""

    memory: memoryview
    starts: Sequence[int]


class LinkError(BellwireError):
    """A link cannot be opened or set up as the options ask."""


class Offload(IntFlag):
    """Work on a packet that its sender may leave to the guest (linux/if_tun.h, TUN_F_*)."""

    CHECKSUM = 0x01
    TSO4 = 0x02
    TSO6 = 0x04
    ECN = 0x08


class LinkEnd(Protocol):
    """The end of a link for one pair of queues. No method waits."""

    def fileno(self) -> int:
        """A descriptor that can be read while there is a packet; -1 without a peer."""

    def receive(self, buffers: Buffers) -> int:
        """Receive the next packet, header first, into ``buffers``. Returns its size, or 0 if there is none now.

        They have room for the largest packet, and the first of them has room for the header. The link does not fill
        in the number of buffers in the header, and may change bytes of the buffers behind the packet.

        A LinkError if the link can deliver no packet any more.
        """

    def receive_each(self, into: Places, room: int, packet: memoryview, sizes: list[int]) -> None:
        """Receive packets by way of ``packet``, each to the next of ``into``, which all have ``room`` bytes.

        The size of each is appended to ``sizes``. It ends when there is no packet now; and when one does not fit, which
        is in ``packet`` then. The number of buffers in the header is 1. A LinkError as from :meth:`receive`.
        """

    def send(self, packet: Buffers) -> bool:
        """Send a packet, header first, in any number of pieces. False if it was dropped."""

    def send_each(self, places: Places, sizes: Sequence[int]) -> list[int]:
        """Send packets of one piece each. Returns the sizes of those that were dropped."""


class Link(Protocol):
    """The link of one network card, with all its ends."""

    @property
    def ends(self) -> Sequence[LinkEnd]:
        """The ends, one for each pair of queues."""

    @property
    def offloads(self) -> bool:
        """Whether packets have meaningful headers, so that checksums and segmentation can be left to others."""

    def offload(self, what: Offload) -> None:
        """Set the work that senders may leave to the guest, as negotiated with it."""

    def use(self, pairs: int) -> None:
        """Use the first ``pairs`` ends from now on."""

    def carrier(self, up: bool) -> None:
        """Show the other side whether the cable is plugged in."""

    def close(self) -> None:
        """Close the link and its descriptors."""
