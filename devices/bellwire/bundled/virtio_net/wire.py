"""What the options of a card say of its link."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from bellwire.network import DatagramLink, Link, MacvtapLink, StreamLink, TapLink
from bellwire.network.checks import given
from bellwire.network.interface import Settings, Vxlan

if TYPE_CHECKING:
    from bellwire.bundled.virtio_net import VirtioNet

NO_OFFLOAD, VHOST_NET = "none", "vhost-net"


def wire_fault(card: VirtioNet) -> str | None:
    """What is wrong with the options of the link together; None if nothing is."""
    if sum((bool(card.tap), given(card.dgram) or given(card.local), given(card.stream))) != 1:
        return "virtio-net needs one of tap=, dgram= (with local=) and stream="
    if card.pairs > 1 and not card.tap:
        return f"option pairs={card.pairs}: expected 1 on a socket"
    if card.macvtap and (card.bridge or not card.tap):
        return f"option macvtap={card.macvtap}: needs tap=, and goes without bridge="
    if card.vxlan and not card.bridge:
        return f"option vxlan={card.vxlan}: needs bridge="
    if card.offload == VHOST_NET and not card.tap:
        return f"option offload={VHOST_NET}: needs tap="
    return None


def open_wire(card: VirtioNet, address: bytes) -> Link:
    """Open the link that the options name: one of tap, dgram (or local) and stream. Raises a LinkError."""
    dgram, local, stream = (path if given(path) else None for path in (card.dgram, card.local, card.stream))
    if card.tap:
        settings = Settings(card.namespace, card.bridge, card.mtu, card.up)
        if card.macvtap:
            return MacvtapLink(card.tap, card.macvtap, card.pairs, replace(settings, address=address.hex(":")))
        tunnel = Vxlan.parse(card.vxlan) if card.vxlan else None
        return TapLink(card.tap, card.pairs, replace(settings, vxlan=tunnel))
    return StreamLink(stream, listen=card.listen) if stream else DatagramLink(local, dgram)


def made_up_mac() -> bytes:
    """A random, locally administered address."""
    first, *others = os.urandom(6)
    return bytes([first & 0xFC | 0x02, *others])
