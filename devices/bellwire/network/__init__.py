"""Links: the connections of emulated network cards to taps, macvtaps and UNIX sockets.

A :class:`Link` has a :class:`LinkEnd` for each pair of queues. A packet is a virtio-net header (virtio 1.2 §5.1.6) and
an Ethernet frame, on every kind of link.
"""

from bellwire.network.link import HEADER_SIZE, LARGEST_PACKET, Link, LinkEnd, LinkError, Offload
from bellwire.network.macvtap import MacvtapLink
from bellwire.network.sockets import DatagramLink, StreamLink
from bellwire.network.tap import TapLink

__all__ = [
    "HEADER_SIZE",
    "LARGEST_PACKET",
    "DatagramLink",
    "Link",
    "LinkEnd",
    "LinkError",
    "MacvtapLink",
    "Offload",
    "StreamLink",
    "TapLink",
]
