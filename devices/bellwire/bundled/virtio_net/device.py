"""virtio-net: a network card (virtio 1.2 §5.1) on a tap or a UNIX socket."""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from pathlib import Path

from bellwire import Option, OptionError, Saved, SavedBytes
from bellwire.bundled.virtio_net.control import answer
from bellwire.bundled.virtio_net.features import OFFLOADS, Net, taken_over
from bellwire.bundled.virtio_net.filter import Filter
from bellwire.network import (
    LARGEST_PACKET,
    DatagramLink,
    Link,
    LinkEnd,
    LinkError,
    MacvtapLink,
    Offload,
    StreamLink,
    TapLink,
)
from bellwire.network.checks import given, interface_fault, mac_fault, mtu_fault, parse_mac, socket_fault, vxlan_fault
from bellwire.network.interface import Settings, Vxlan
from bellwire.network.link import SMALLEST_PACKET
from bellwire.virtio import Chain, VirtioDevice, Virtqueue, field

MOST_PAIRS = 8
BATCH = 64  # packets from one end, before the others have their turn
NUM_BUFFERS = slice(10, 12)  # of a packet's header (§5.1.6)
LINK_UP = 1


class Lane:
    """One pair of queues at work: its end, and a packet that has come and found no room yet."""

    def __init__(self, number: int, end: LinkEnd) -> None:
        self.number = number
        self.end = end
        self.buffer = memoryview(bytearray(LARGEST_PACKET))
        self.size = 0
        """Of the packet that waits in ``buffer``."""
        self.watched = -1
        """The descriptor that is being watched."""
        self.waits_for_turn = False


class VirtioNet(
    VirtioDevice, kind=1, queues=2 * MOST_PAIRS + 1, queue_size=1024, class_code=0x020000, name="virtio-net"
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

    filter_state = SavedBytes(ctypes.sizeof(Filter))
    used_pairs = Saved(1)
    """Pairs of queues that packets come in by."""
    given_up = Saved(0)
    """Offloads that the guest has agreed to and does not want any more."""

    address = field(0x00, size=6)
    status = field(0x06, size=2)
    max_virtqueue_pairs = field(0x08, size=2)
    max_mtu = field(0x0A, size=2)

    wire: Link

    def check_options(self) -> None:
        """One other side, and what goes with it."""
        if sum((bool(self.tap), given(self.dgram) or given(self.local), given(self.stream))) != 1:
            raise OptionError("virtio-net needs one of tap=, dgram= (with local=) and stream=")
        if self.pairs > 1 and not self.tap:
            raise OptionError(f"option pairs={self.pairs}: expected 1 on a socket")
        if self.macvtap and (self.bridge or not self.tap):
            raise OptionError(f"option macvtap={self.macvtap}: needs tap=, and goes without bridge=")
        if self.vxlan and not self.bridge:
            raise OptionError(f"option vxlan={self.vxlan}: needs bridge=")

    def setup(self) -> None:
        """Open the other side."""
        self.link_up = self.link
        self.dropped = 0
        address = parse_mac(self.mac) or made_up_mac()
        self.filter = Filter.at(self.filter_state, address)
        self.wire = self.open_wire(address)
        self.lanes = [Lane(number, end) for number, end in enumerate(self.wire.ends)]

    def open_wire(self, address: bytes) -> Link:
        """What the options name: one of tap, dgram (or local) and stream."""
        dgram, local, stream = (path if given(path) else None for path in (self.dgram, self.local, self.stream))
        if self.tap:
            settings = Settings(self.namespace, self.bridge, self.mtu, self.up)
            if self.macvtap:
                return MacvtapLink(self.tap, self.macvtap, self.pairs, replace(settings, address=address.hex(":")))
            tunnel = Vxlan.parse(self.vxlan) if self.vxlan else None
            return TapLink(self.tap, self.pairs, replace(settings, vxlan=tunnel))
        return StreamLink(stream, listen=self.listen) if stream else DatagramLink(local, dgram)

    def close(self) -> None:
        """Leave."""
        for lane in self.lanes:
            self.watch_lane(lane, False)
        self.wire.close()
        del self.filter  # it lies in the device's state
        super().close()

    @property
    def queue_count(self) -> int:
        """Receive and transmit queue of each pair, and the control queue (§5.1.2)."""
        return 2 * self.pairs + 1

    def features(self) -> set[int]:
        """Offloads only where headers travel."""
        offered: set[int] = {Net.MAC, Net.STATUS, Net.MRG_RXBUF, Net.CTRL_VQ, Net.CTRL_RX, Net.CTRL_RX_EXTRA}
        offered |= {Net.CTRL_VLAN, Net.CTRL_MAC_ADDR}
        offered |= OFFLOADS if self.offloads and self.wire.offloads else set()
        return offered | ({Net.MTU} if self.mtu else set()) | ({Net.MQ} if self.pairs > 1 else set())

    # -- configuration (§5.1.4)

    @address.read
    def read_address(self) -> int:
        """As it goes over the wire."""
        return int.from_bytes(self.filter.mac, "little")

    @status.read
    def read_link(self) -> int:
        """Whether the cable is in."""
        return LINK_UP if self.link_up else 0

    @max_virtqueue_pairs.read
    def read_pairs(self) -> int:
        """What the option says."""
        return self.pairs

    @max_mtu.read
    def read_mtu(self) -> int:
        """What the option says; it means nothing without the feature."""
        return self.mtu

    @link.set
    def set_link(self, up: bool) -> None:
        """Plug the cable in or out while the guest runs; it is told, and so is the tap's side."""
        if up != self.link_up:
            self.link_up = up
            self.wire.carrier(up)
            self.configuration_changed()

    # -- the life of the driver

    def started(self) -> None:
        """Packets may come."""
        self.filter.by_vlan = Net.CTRL_VLAN in self.negotiated
        self.filter.refresh()
        self.take_over(taken_over(self.negotiated) & ~Offload(self.given_up))
        self.use_pairs(self.used_pairs)

    def stopped(self) -> None:
        """None may."""
        self.filter.refresh()
        for lane in self.lanes:
            self.watch_lane(lane, False)
            lane.size = 0
            lane.waits_for_turn = False

    @property
    def usable_pairs(self) -> int:
        """Pairs of queues that the driver knows of; the control queue follows them (§5.1.2)."""
        return self.pairs if Net.MQ in self.negotiated else 1

    def take_over(self, what: Offload) -> None:
        """Have packets come with work left in them, as the guest has agreed to."""
        self.given_up = taken_over(self.negotiated) & ~what
        if self.wire.offloads:
            self.wire.offload(what)

    def use_pairs(self, pairs: int) -> None:
        """Receive on so many pairs of queues."""
        self.used_pairs = pairs
        self.wire.use(pairs)
        for lane in self.lanes:
            self.watch_lane(lane, lane.number < pairs)

    # -- packets

    def notified(self, queue: Virtqueue) -> None:
        """Buffers to fill, packets to send, or commands."""
        control = 2 * self.usable_pairs
        if queue.index == control:
            for chain in queue:
                answer(self, chain)
        elif queue.index < control:
            lane = self.lanes[queue.index // 2]
            if queue.index % 2:
                self.transmit(queue, lane.end)
            elif lane.number < self.used_pairs:
                self.watch_lane(lane, True)
                self.receive(lane)

    def transmit(self, queue: Virtqueue, end: LinkEnd) -> None:
        """From guest memory into the end, with no copy between (§5.1.6.2)."""
        for chain in queue:
            if not (SMALLEST_PACKET <= chain.size <= LARGEST_PACKET and self.link_up and end.send(chain.readable)):
                self.dropped += 1
            chain.done()

    def receive(self, lane: Lane) -> None:
        """What the end has, as far as the guest has room for it (§5.1.6.4); one interrupt for all."""
        queue = self.virtqueues[2 * lane.number]
        queue.silence()
        for _ in range(BATCH):
            try:
                lane.size = lane.size or lane.end.receive(lane.buffer)
            except LinkError as error:
                self.log.warning("%s", error)
                self.watch_lane(lane, False)
                self.set_link(False)
                break
            if not lane.size:
                break
            packet = lane.buffer[: lane.size]
            if self.link_up and self.filter.admits(packet) and not self.deliver(queue, packet):
                self.watch_lane(lane, False)  # until the driver tells us of more buffers
                break
            lane.size = 0
        else:
            if not lane.waits_for_turn:
                lane.waits_for_turn = True
                self.after(0, self.go_on, lane)
        queue.flush()

    def go_on(self, lane: Lane) -> None:
        """There may be more than a batch."""
        lane.waits_for_turn = False
        if lane.watched >= 0:
            self.receive(lane)

    def deliver(self, queue: Virtqueue, packet: memoryview) -> bool:
        """Into one buffer, or as many as it takes; False when there are not enough yet, and we shall hear of more."""
        chains: list[Chain] = []
        room = 0
        while room < len(packet):
            chain = queue.take()
            if chain is None:
                if queue.listen():
                    continue
                hopeless = queue.out >= queue.size  # the driver has no more to give
                queue.back(chains)
                self.dropped += hopeless
                return hopeless
            chains.append(chain)
            room += chain.room
            if Net.MRG_RXBUF not in self.negotiated:
                break
        if room < len(packet):
            queue.back(chains)
            self.dropped += 1
            return True
        packet[NUM_BUFFERS] = len(chains).to_bytes(2, "little")
        for chain in chains:
            chain.write(packet[: chain.room])
            packet = packet[chain.room :]
            chain.done()
        return True

    def watch_lane(self, lane: Lane, wanted: bool) -> None:
        """Look at the end only while there is use for what it has."""
        wanted = wanted and self.running
        if wanted and lane.watched < 0:
            lane.watched = lane.end.fileno()
            self.watch(lane.watched, lambda: self.arrived(lane))
        elif not wanted and lane.watched >= 0:
            self.unwatch(lane.watched)
            lane.watched = -1

    def arrived(self, lane: Lane) -> None:
        """The end has something."""
        if self.running and self.connected:
            self.receive(lane)
        else:
            self.watch_lane(lane, False)


def made_up_mac() -> bytes:
    """An address that is locally administered, and nobody else's but by bad luck."""
    first, *others = os.urandom(6)
    return bytes([first & 0xFC | 0x02, *others])
