"""Packets to and from the link: many at a time if each has a buffer of one piece."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING

from bellwire.bundled.virtio_net.lane import Lane
from bellwire.network import HEADER_SIZE, LARGEST_PACKET, LinkEnd
from bellwire.network.link import SMALLEST_PACKET, Places
from bellwire.virtio import Chain, Virtqueue
from bellwire.virtio.virtqueue import BATCH as MOST_BUFFERS

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


def send_whole(card: VirtioNet, end: LinkEnd, queue: Virtqueue, _: object, most: int) -> int:
    """Send a packet from each of up to ``most`` buffers, and return the buffers. Returns how many."""
    begun = perf_counter_ns()
    whole = queue.whole(most, write=False)
    if whole is None:
        return 0
    _, memory, starts, sizes = whole
    count, size = len(sizes), sum(sizes)
    if not card.link_up:
        starts = sizes = []
    elif min(sizes) < SMALLEST_PACKET or max(sizes) > LARGEST_PACKET:
        fit = [number for number, size in enumerate(sizes) if SMALLEST_PACKET <= size <= LARGEST_PACKET]
        starts, sizes = [starts[number] for number in fit], [sizes[number] for number in fit]
    dropped = end.send_each(Places(memory, starts), sizes)
    sent = len(sizes) - len(dropped)
    card.dropped += count - sent
    card.moved[2] += sent
    card.moved[3] += sum(sizes) - sum(dropped)
    queue.put_whole(whole, [0] * count, size)
    card.meter.took(perf_counter_ns() - begun, count)
    return count


def receive(card: VirtioNet, lane: Lane, queue: Virtqueue, most: int) -> int:
    """Receive up to ``most`` packets. Returns how many; 0 if there is none, or no buffer for it.

    ``lane.drained`` tells whether there is none. A packet that does not fit is the last one, and waits in the lane.
    """
    if card.link_up and lane.buffers == 1 and card.filter.takes_all and not (lane.ready or lane.filled):
        came = _receive_whole(card, lane, queue, min(most, lane.likely + 1, MOST_BUFFERS))
        if came is not None:
            lane.likely = most
            return came
    return int(card.take_packet(lane, queue, most))


def _receive_whole(card: VirtioNet, lane: Lane, queue: Virtqueue, most: int) -> int | None:
    """Receive packets, each into one buffer, and return the buffers. None if there is no buffer of that kind."""
    whole = queue.whole(most, write=True)
    if whole is None or whole.sizes[0] < HEADER_SIZE:
        return None
    _, memory, starts, sizes = whole
    room = sizes[0]
    if sizes.count(room) < len(sizes):
        starts = starts[: next(number for number, size in enumerate(sizes) if size != room)]
    came: list[int] = []
    try:
        lane.end.receive_each(Places(memory, starts), room, lane.buffer, came)
    finally:
        card.moved[0] += len(came)
        card.moved[1] += sum(came)
        lane.drained = len(came) < len(starts)
        if came and came[-1] > room:
            lane.size, lane.drained = came.pop(), False
        queue.put_whole(whole, came, sum(came))
    return len(came) + (lane.size > 0)
