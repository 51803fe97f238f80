"""The feature bits of a network card (§5.1.3)."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from bellwire.network.link import Offload


class Net(IntEnum):
    """Feature bits by name."""

    CSUM = 0
    GUEST_CSUM = 1
    CTRL_GUEST_OFFLOADS = 2
    MTU = 3
    MAC = 5
    GUEST_TSO4 = 7
    GUEST_TSO6 = 8
    GUEST_ECN = 9
    HOST_TSO4 = 11
    HOST_TSO6 = 12
    HOST_ECN = 13
    MRG_RXBUF = 15
    STATUS = 16
    CTRL_VQ = 17
    CTRL_RX = 18
    CTRL_VLAN = 19
    CTRL_RX_EXTRA = 20
    MQ = 22
    CTRL_MAC_ADDR = 23


TAKEN_OVER = {
    Net.GUEST_CSUM: Offload.CHECKSUM,
    Net.GUEST_TSO4: Offload.TSO4,
    Net.GUEST_TSO6: Offload.TSO6,
    Net.GUEST_ECN: Offload.ECN,
}
OFFLOADS = {*TAKEN_OVER, Net.CTRL_GUEST_OFFLOADS, Net.CSUM, Net.HOST_TSO4, Net.HOST_TSO6, Net.HOST_ECN}


def taken_over(features: Iterable[int]) -> Offload:
    """The offloads for the guest in ``features``. A feature without those that it requires (§5.1.3.1) is ignored."""
    what = Offload(0)
    for feature in TAKEN_OVER.keys() & set(features):
        what |= TAKEN_OVER[Net(feature)]
    if Offload.CHECKSUM not in what:
        return Offload(0)
    return what if what & (Offload.TSO4 | Offload.TSO6) else what & ~Offload.ECN
