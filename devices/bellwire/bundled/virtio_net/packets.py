"""Packets to and from the link: many at a time if each has a buffer of one piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bellwire.bundled.virtio_net.lane import Lane
from bellwire.network import HEADER_SIZE, LARGEST_PACKET, LinkEnd
from bellwire.network.link import SMALLEST_PACKET
from bellwire.virtio import Chain, Virtqueue
from bellwire.virtio.whole import Whole

if TYPE_CHECKING:
    from bellwire.bundled.virtio_net import VirtioNet


def send(card: VirtioNet, end: LinkEnd, chains: Sequence[Chain]) -> None:
    """Send a packet from each buffer."""
    for chain in chains:
        fits = SMALLEST_PACKET <= chain.size <= LARGEST_PACKET
        if fits and card.link_up and end.send(chain.readable):
            card.moved[2] += 1
            card.moved[3] += chain.size
        else:
            card.dropped += 1


def send_whole(card: VirtioNet, end: LinkEnd, whole: Whole) -> None:
    """Send a packet from each buffer."""
    packets, sizes = whole.views, whole.sizes
    if not card.link_up:
        packets = []
    elif min(sizes) < SMALLEST_PACKET or max(sizes) > LARGEST_PACKET:
        packets = [view for view in packets if SMALLEST_PACKET <= len(view) <= LARGEST_PACKET]
    dropped = end.send_each(packets)
    sent = len(packets) - len(dropped)
    card.dropped += len(whole) - sent
    card.moved[2] += sent
    card.moved[3] += sum(sizes) if sent == len(whole) else sum(map(len, packets)) - sum(map(len, dropped))


def receive(card: VirtioNet, lane: Lane, queue: Virtqueue, most: int) -> int:
    """Receive up to ``most`` packets. Returns how many; 0 if there is none, or no buffer for it.

    ``lane.drained`` tells whether there is none. A packet that does not fit is the last one, and waits in the lane.
    """
    if card.link_up and lane.buffers == 1 and card.filter.takes_all and not (lane.ready or lane.filled):
        came = _receive_whole(card, lane, queue, min(most, lane.likely + 1))
        lane.likely = most
        if came is not None:
            return came
    return int(card.take_packet(lane, queue, most))


def _receive_whole(card: VirtioNet, lane: Lane, queue: Virtqueue, most: int) -> int | None:
    """Receive packets, each right into one buffer, and return the buffers. None if there is no buffer of that kind."""
    whole = queue.take_whole(most, write=True)
    if whole is None:
        return None
    room, views, sizes = whole.sizes[0], whole.views, whole.sizes
    if sizes.count(room) < len(sizes):
        views = views[: next(number for number, size in enumerate(sizes) if size != room)]
    came: list[int] = []
    if room < HEADER_SIZE:
        queue.put_whole(whole, came)
        return None
    try:
        lane.end.receive_each(views, lane.after(room), came)
    finally:
        card.moved[0] += len(came)
        card.moved[1] += sum(came)
        lane.drained = len(came) < len(views)
        if came and came[-1] > room:
            lane.size, lane.drained = came.pop(), False
            lane.buffer[:room] = views[len(came)]
        for view in views[: len(came)]:
            view[10], view[11] = 1, 0  # num_buffers (§5.1.6)
        queue.put_whole(whole, came)
    return len(came) + (lane.size > 0)
