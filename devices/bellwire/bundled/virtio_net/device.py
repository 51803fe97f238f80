"""virtio-net: a network card (virtio 1.2 §5.1) on a tap or a UNIX socket."""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from bellwire import Meter, Option, OptionError, Saved, SavedBytes
from bellwire.bundled.virtio_net import packets
from bellwire.bundled.virtio_net.control import answer
from bellwire.bundled.virtio_net.filter import Filter
from bellwire.bundled.virtio_net.lane import Lane
from bellwire.bundled.virtio_net.wire import NO_OFFLOAD, VHOST_NET, made_up_mac, open_wire, wire_fault
from bellwire.network import (
    Link,
    LinkEnd,
    LinkError,
    Offload,
    TapLink,
)
from bellwire.network.checks import interface_fault, mac_fault, mtu_fault, parse_mac, socket_fault, vxlan_fault
from bellwire.network.features import OFFLOADS, Net, taken_over
from bellwire.network.link import HEADER_SIZE, NUM_BUFFERS, ONE_BUFFER
from bellwire.pieces import MOST_PIECES
from bellwire.vhost.device import VhostDevice
from bellwire.vhost.kernel import VhostNet
from bellwire.vhost.plane import Plane
from bellwire.virtio import Chain, Virtqueue, field
from bellwire.virtio.virtqueue import BATCH as MOST_BUFFERS

MOST_PAIRS = 8
BATCH = 256  # packets from one end, before the others get their turn
HEAD = HEADER_SIZE + 18
"""Bytes of a packet that the filter looks at: the header, both addresses, and a VLAN tag."""
LINK_UP = 1
FILTERING = {Net.CTRL_RX, Net.CTRL_RX_EXTRA, Net.CTRL_VLAN}
"""What the kernel does not do with packets: a tap passes all of them on."""


class VirtioNet(
    VhostDevice, kind=1, queues=2 * MOST_PAIRS + 1, queue_size=1024, class_code=0x020000, name="virtio-net"
):
    """A network card with checksum and segmentation offloads, several queues, and filters."""

    tap = Option("", check=interface_fault, help="name of the tap at the other side; created if it does not exist")
    bridge = Option("", check=interface_fault, help="tap: a bridge that the interface joins")
    vxlan = Option(
        "", check=vxlan_fault, help="tap: NUMBER@ADDRESS, a VXLAN tunnel to another host, which joins the bridge too"
    )
    macvtap = Option("", check=interface_fault, help="tap: the host's interface to share, instead of a bridge")
    namespace = Option("", help="tap: the network namespace it is in, by name or path")
    offloads = Option(True, help="tap: offer checksum and segmentation offloads")
    up = Option(True, help="tap: bring the interface up")
    mtu = Option(
        0,
        check=mtu_fault,
        help="largest payload of a frame, for the guest and the tap, 68 to 65535; 0: unchanged",
    )
    dgram = Option(Path(), check=socket_fault, help="UNIX datagram socket that takes the guest's frames")
    local = Option(Path(), check=socket_fault, help="UNIX datagram socket for frames to the guest")
    stream = Option(Path(), check=socket_fault, help="UNIX stream socket for frames with their lengths")
    listen = Option(False, help="stream: wait for a connection there instead of making one")
    mac = Option("", check=mac_fault, help="address of the card; default: a random local one")
    link = Option(True, help="whether the cable is plugged in")
    pairs = Option(1, least=1, most=MOST_PAIRS, help="pairs of queues; more than one on a tap only")
    offload = Option(NO_OFFLOAD, choices=(NO_OFFLOAD, VHOST_NET), help="tap: who moves packets; vhost-net: the kernel")

    filter_state = SavedBytes(ctypes.sizeof(Filter))
    own_address = SavedBytes(6)
    """The card's own address. One that was made up goes with the state: the driver has read it."""
    used_pairs = Saved(1)
    """The number of queue pairs that receive packets."""
    given_up = Saved(0)
    """Offloads that the guest has negotiated, and then turned off."""

    address = field(0x00, size=6)
    status = field(0x06, size=2)
    max_virtqueue_pairs = field(0x08, size=2)
    max_mtu = field(0x0A, size=2)

    wire: Link
    tap_queues: list[int]
    """The descriptors of the tap that the kernel's back end gets."""
    moved: list[int]
    """Packets and bytes received, packets and bytes sent. Those that the kernel moves are not counted."""
    meter: Meter

    def check_options(self) -> None:
        """Refuse options that contradict each other: exactly one kind of link is allowed."""
        if fault := wire_fault(self):
            raise OptionError(fault)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.offload == VHOST_NET:
            self.plane = Plane(self, lambda _: VhostNet(self.tap_queues), [], needs=self.pairs, size=0)

    def setup(self) -> None:
        """Open the link, and the kernel's back end if it moves the packets."""
        self.link_up = self.link
        self.dropped = 0
        self.moved = [0, 0, 0, 0]
        self.meter = Meter(self, self.totals)
        address = parse_mac(self.mac) or made_up_mac()
        self.filter = Filter.at(self.filter_state, address)
        self.wire = open_wire(self, address)
        self.lanes = [Lane(number, end) for number, end in enumerate(self.wire.ends)]
        if isinstance(self.wire, TapLink) and self.plane is not None:
            self.tap_queues = [end.fileno() for end in self.wire.ends]
            self.open_plane(self.wire)

    def close(self) -> None:
        """Close the link."""
        for lane in self.lanes:
            self.watch_lane(lane, False)
        self.wire.close()
        del self.filter  # it refers to the device's state, which is closed next
        super().close()

    def totals(self) -> dict[str, tuple[int, int]]:
        """Packets and bytes, for the meter."""
        received, into, sent, out = self.moved  # with virtio's header of each packet
        return {
            "receive": (received, into - received * HEADER_SIZE),
            "transmit": (sent, out - sent * HEADER_SIZE),
        }

    @property
    def queue_count(self) -> int:
        """A receive and a transmit queue for each pair, and the control queue (§5.1.2)."""
        return 2 * self.pairs + 1

    def features(self) -> set[int]:
        """The features of the card. It offers offloads only on a link that carries headers."""
        offered: set[int] = {Net.MAC, Net.STATUS, Net.MRG_RXBUF, Net.CTRL_VQ, Net.CTRL_RX, Net.CTRL_RX_EXTRA}
        offered |= {Net.CTRL_VLAN, Net.CTRL_MAC_ADDR}
        offered |= OFFLOADS if self.offloads and self.wire.offloads else set()
        offered -= set() if self.plane is None else FILTERING
        return offered | ({Net.MTU} if self.mtu else set()) | ({Net.MQ} if self.pairs > 1 else set())

    # -- configuration (§5.1.4)

    @address.read
    def read_address(self) -> int:
        """The address, in the order of its bytes on the wire."""
        return int.from_bytes(self.filter.mac, "little")

    @status.read
    def read_link(self) -> int:
        """The status field: whether the cable is plugged in."""
        return LINK_UP if self.link_up else 0

    @max_virtqueue_pairs.read
    def read_pairs(self) -> int:
        """The largest number of queue pairs, from the option."""
        return self.pairs

    @max_mtu.read
    def read_mtu(self) -> int:
        """The MTU, from the option. It is valid only with the MTU feature."""
        return self.mtu

    @link.set
    def set_link(self, up: bool) -> None:
        """Plug the cable in or out while the guest runs. Guest and tap are told."""
        if up != self.link_up:
            self.link_up = up
            self.wire.carrier(up)
            if self.plane is not None:
                self.plane.allowed = up
                self.plane.settle()
            self.configuration_changed()

    # -- the life of the driver

    def renew(self) -> None:
        """A reset keeps the card's own address."""
        super().renew()
        self.own_address[:] = self.filter.own

    def restored(self) -> None:
        """Go on with an address that was made up: an option counts for more."""
        if not self.mac and any(self.own_address):
            self.filter.own = bytes(self.own_address)
        super().restored()

    def started(self) -> None:
        """The driver is ready: set filters and offloads, and watch the link."""
        self.filter.by_vlan = Net.CTRL_VLAN in self.negotiated
        self.take_over(taken_over(self.negotiated) & ~Offload(self.given_up))
        self.use_pairs(self.used_pairs)
        if self.plane is not None:
            self.plane.queues = self.virtqueues[: 2 * self.usable_pairs]
            self.plane.allowed = self.link_up
        super().started()

    def stopped(self) -> None:
        """Drop packets that wait, and watch the link no more."""
        super().stopped()
        self.filter.refresh()
        for lane in self.lanes:
            self.watch_lane(lane, False)
            lane.size = 0
            lane.waits_for_turn = False

    @property
    def usable_pairs(self) -> int:
        """The number of queue pairs that the driver knows. The control queue follows them (§5.1.2)."""
        return self.pairs if Net.MQ in self.negotiated else 1

    def take_over(self, what: Offload) -> None:
        """Set the offloads of the link: the work on packets that is left to the guest."""
        self.given_up = taken_over(self.negotiated) & ~what
        if self.wire.offloads:
            self.wire.offload(what)

    def use_pairs(self, pairs: int) -> None:
        """Receive on the first ``pairs`` queue pairs."""
        self.used_pairs = pairs
        self.wire.use(pairs)
        for lane in self.lanes:
            self.watch_lane(lane, lane.number < pairs)

    # -- packets

    def notified(self, queue: Virtqueue) -> None:
        """Receive packets, send packets, or execute commands."""
        control = 2 * self.usable_pairs
        if queue.index == control:
            for chain in queue:
                answer(self, chain)
        elif queue.index < control and self.plane is None:
            lane = self.lanes[queue.index // 2]
            if queue.index % 2:
                self.transmit(queue, lane.end)
            elif lane.number < self.used_pairs:
                self.receive(lane)

    def transmit(self, queue: Virtqueue, end: LinkEnd) -> None:
        """Send packets from guest memory to the link, without a copy (§5.1.6.2)."""
        for chains in queue.batches(partial(packets.send_whole, self, end)):
            if chains:
                begun = perf_counter_ns()
                packets.send(self, end, chains)
                queue.finish(chains)
                self.meter.took(perf_counter_ns() - begun, len(chains))

    def receive(self, lane: Lane) -> None:
        """Receive packets while the guest has buffers (§5.1.6.4), with one interrupt for all."""
        queue = self.virtqueues[2 * lane.number]
        queue.silence()
        left = BATCH
        lane.drained = lane.starved = False
        try:
            while left > 0 and not lane.drained:
                came = 1 if lane.size else packets.receive(self, lane, queue, left)
                if not came:
                    break
                left -= came
                if lane.size:
                    self.put_back(lane, queue)
                    if not self.deliver(queue, lane):
                        lane.starved = True
                        break
            else:
                if not lane.drained and not lane.waits_for_turn:
                    lane.waits_for_turn = True
                    self.after(0, self.go_on, lane)
        except LinkError as error:
            self.log.warning("%s", error)
            lane.starved = True
            self.set_link(False)
        finally:
            self.put_back(lane, queue)
            queue.flush()
        lane.end_turn(BATCH - left)
        self.watch_lane(lane, not lane.starved)

    def put_back(self, lane: Lane, queue: Virtqueue) -> None:
        """Return the buffers of the lane that packets were received into, and make the others available again."""
        if lane.filled or lane.ready:
            queue.finish(lane.filled)
            queue.back(lane.ready)
            lane.filled.clear()
            lane.ready.clear()

    def take_packet(self, lane: Lane, queue: Virtqueue, most: int) -> bool:
        """Receive one packet right into the guest's buffers. False if there is none, or no buffer for it.

        Up to ``most`` buffers are taken at once. A packet that does not fit in as many buffers as the last one goes to
        the lane's own memory, from which :meth:`deliver` copies it.
        """
        ready, wanted = lane.ready, lane.buffers
        while len(ready) < wanted:
            queue.finish(lane.filled)  # these are published even if the next buffer is wrong
            lane.filled.clear()
            taken = queue.take(min(most, lane.likely + wanted, MOST_BUFFERS))
            lane.likely = most
            if taken:
                ready += taken
            elif not queue.listen():
                break
        if not ready:
            lane.starved = True
            return False
        views, room = ready[0].writable, ready[0].room
        if wanted > 1:
            views = [view for chain in ready[:wanted] for view in chain.writable]
            room = sum([chain.room for chain in ready[:wanted]])
        least = HEADER_SIZE if self.filter.takes_all else HEAD
        if not (self.link_up and views and len(views[0]) >= least and len(views) < MOST_PIECES):
            views, room = [], 0
        size = lane.end.receive([*views, lane.after(room)])
        if not size:
            return False
        packet = views[0] if views else lane.buffer
        if not (self.link_up and self.filter.admits(packet)):
            return True
        moved = self.moved
        moved[0] += 1
        moved[1] += size
        if size > room:
            at = 0
            for view in views:
                lane.buffer[at : at + len(view)] = view
                at += len(view)
            lane.size = size
            return True
        used = 0
        for chain in ready:
            used += 1
            if size <= chain.room:
                chain.written = size
                break
            chain.written = chain.room
            size -= chain.room
        packet[NUM_BUFFERS] = ONE_BUFFER if used == 1 else used.to_bytes(2, "little")
        lane.most = max(lane.most, used)
        lane.filled += ready[:used]
        del ready[:used]
        return True

    def go_on(self, lane: Lane) -> None:
        """Receive more packets, after a full batch."""
        lane.waits_for_turn = False
        if lane.watched is not None:
            self.receive(lane)

    def deliver(self, queue: Virtqueue, lane: Lane) -> bool:
        """Copy the packet that waits. False if there are too few buffers; the driver notifies the card of more."""
        packet = lane.buffer[: lane.size]
        merges = Net.MRG_RXBUF in self.negotiated
        chains: list[Chain] = []
        room = 0
        while room < len(packet) and (merges or not chains):
            taken = queue.take()
            if taken:
                chains += taken
                room += taken[0].room
            elif not queue.listen():
                queue.flush()  # the buffers with earlier packets are the driver's again
                hopeless = queue.out >= queue.size  # the driver has no more buffers
                queue.back(chains)
                if hopeless:
                    self.dropped += 1
                    lane.size = 0
                return hopeless
        lane.size = 0
        if room < len(packet):
            queue.back(chains)
            self.dropped += 1
            return True
        packet[NUM_BUFFERS] = len(chains).to_bytes(2, "little")
        for chain in chains:
            chain.write(packet[: chain.room])
            packet = packet[chain.room :]
        queue.finish(chains)
        lane.buffers = lane.most = len(chains)
        return True

    def watch_lane(self, lane: Lane, wanted: bool) -> None:
        """Watch the end of ``lane``, or stop watching it. It is watched only while the driver is ready, and by one."""
        wanted = wanted and self.running and self.plane is None
        if wanted and lane.watched is None:
            lane.watched = lane.end.fileno()
            self.watch(lane.watched, lambda: self.arrived(lane))
        elif not wanted and lane.watched is not None:
            self.unwatch(lane.watched)
            lane.watched = None

    def arrived(self, lane: Lane) -> None:
        """The end of ``lane`` can be read."""
        if self.running and self.connected:
            self.receive(lane)
        else:
            self.watch_lane(lane, False)
