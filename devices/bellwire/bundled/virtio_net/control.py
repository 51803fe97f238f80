"""The control queue of a network card (§5.1.6.5): each buffer has one command, and a byte for the answer."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from bellwire.bundled.virtio_net.filter import VLANS, Mode
from bellwire.network.features import TAKEN_OVER, taken_over
from bellwire.virtio.chain import Chain

if TYPE_CHECKING:
    from bellwire.bundled.virtio_net import VirtioNet

OK, ERROR = b"\x00", b"\x01"
LARGEST = 1 << 16  # bytes of a command: no valid one is longer
COUNT = struct.Struct("<I")
SHORT = struct.Struct("<H")
OFFLOADS = struct.Struct("<Q")

RX, MAC, VLAN, MQ, GUEST_OFFLOADS = 0, 1, 2, 4, 5
MODES = (
    Mode.SELECTIVE,
    Mode.ALL_MULTICAST,
    Mode.ALL_UNICAST,
    Mode.NO_MULTICAST,
    Mode.NO_UNICAST,
    Mode.NO_BROADCAST,
)


class Refused(Exception):
    """A command is unknown, is cut short, or has a value that the card refuses."""


def answer(card: VirtioNet, chain: Chain) -> None:
    """Execute the command in one buffer, and write the answer: OK or ERROR."""
    try:
        if not 2 <= chain.size <= LARGEST:
            raise Refused
        kind, number, *data = chain.read()
        command = COMMANDS.get(kind)
        if command is None:
            raise Refused
        command(card, number, bytes(data))
        chain.write(OK)
    except (Refused, struct.error):
        chain.write(ERROR)
    chain.done()


def set_mode(card: VirtioNet, number: int, data: bytes) -> None:
    """VIRTIO_NET_CTRL_RX: the command's number is the mode (§5.1.6.5.1)."""
    if number >= len(MODES) or len(data) != 1:
        raise Refused
    mode = MODES[number]
    card.filter.set_mode(mode, bool(data[0]) is not (mode is Mode.SELECTIVE))


def set_addresses(card: VirtioNet, number: int, data: bytes) -> None:
    """VIRTIO_NET_CTRL_MAC: the two tables, or the card's own address (§5.1.6.5.2)."""
    if number == 0:
        unicast, data = _table(data)
        multicast, data = _table(data)
        if data:
            raise Refused
        card.filter.set_tables(unicast, multicast)
    elif number == 1 and len(data) == 6 and not data[0] & 1:
        card.filter.mac = data
    else:
        raise Refused


def set_vlan(card: VirtioNet, number: int, data: bytes) -> None:
    """VIRTIO_NET_CTRL_VLAN: add or remove a VLAN (§5.1.6.5.3)."""
    (vlan,) = SHORT.unpack(data)
    if number > 1 or vlan >= VLANS:
        raise Refused
    card.filter.set_vlan(vlan, number == 0)


def set_pairs(card: VirtioNet, number: int, data: bytes) -> None:
    """VIRTIO_NET_CTRL_MQ: set the number of queue pairs in use (§5.1.6.5.5)."""
    (pairs,) = SHORT.unpack(data)
    if number != 0 or not 1 <= pairs <= card.usable_pairs:
        raise Refused
    card.use_pairs(pairs)


def set_offloads(card: VirtioNet, number: int, data: bytes) -> None:
    """VIRTIO_NET_CTRL_GUEST_OFFLOADS: choose a subset of the negotiated offloads (§5.1.6.5.6)."""
    (wanted,) = OFFLOADS.unpack(data)
    bits = {bit for bit in range(64) if wanted >> bit & 1}
    if number != 0 or not bits <= card.negotiated & TAKEN_OVER.keys():
        raise Refused
    card.take_over(taken_over(bits))


def _table(data: bytes) -> tuple[list[bytes], bytes]:
    """Parse a count and that many addresses. Returns the addresses and the rest."""
    (count,) = COUNT.unpack_from(data)
    end = COUNT.size + 6 * count
    if end > len(data):
        raise Refused
    return [data[at : at + 6] for at in range(COUNT.size, end, 6)], data[end:]


COMMANDS: dict[int, Callable[[VirtioNet, int, bytes], None]] = {
    RX: set_mode,
    MAC: set_addresses,
    VLAN: set_vlan,
    MQ: set_pairs,
    GUEST_OFFLOADS: set_offloads,
}
