"""virtio-net on UNIX sockets (virtio 1.2 §5.1): packets, buffers, the link."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest

from bellwire import OptionError
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.model import capabilities as pci
from bellwire.network.features import Net
from bellwire.testing import Guest, conformance
from bellwire.virtio import Feature, Status
from vfio_user import IrqIndex
from virtio.card import ALL, HEADER, PATIENCE, PLAIN, Card
from virtio.frames import OURS, THEIRS, Make, frame

TestVirtioNet = conformance(VirtioNet, dgram=Path("/nobody/is/there"))


def test_a_frame_goes_out(card: Card, far: socket.socket) -> None:
    card.send(frame(THEIRS))
    assert far.recv(2000) == frame(THEIRS)


def test_a_frame_comes_in_with_an_empty_header(card: Card, far: socket.socket) -> None:
    far.send(frame())
    (packet,) = card.await_packets()
    assert packet == ((0, 0, 0, 0, 0, 0, 1), frame())


def test_header_and_frame_may_be_in_any_pieces(make: Make, far: socket.socket) -> None:
    card = make()
    raw = PLAIN + frame(THEIRS)
    card.driver.queues[1].send(raw[:5], raw[5:20], raw[20:])
    assert far.recv(2000) == frame(THEIRS)


def test_packets_keep_their_order_and_share_an_interrupt(card: Card, far: socket.socket) -> None:
    for n in range(5):
        far.send(frame(fill=n))
    assert [packet.frame[-1] for packet in card.await_packets(5)] == list(range(5))
    assert card.driver.guest.interrupts[IrqIndex.MSIX, 1] == 1


def test_a_large_packet_takes_several_buffers(card: Card, far: socket.socket) -> None:
    far.send(frame(size=9000, fill=7))
    (packet,) = card.await_packets()
    assert packet.frame == frame(size=9000, fill=7)
    assert packet.header[-1] == 6


@pytest.mark.parametrize(("more", "buffers"), [(-1, 1), (0, 1), (1, 2)])
def test_a_packet_takes_one_more_buffer_for_one_byte_more(
    make: Make, ring: set[int], far: socket.socket, more: int, buffers: int
) -> None:
    card = make(ring, room=200)
    sent = frame(size=200 - HEADER.size + more)
    far.send(sent)
    (packet,) = card.await_packets()
    assert (packet.frame, packet.header[-1]) == (sent, buffers)


def test_without_merging_a_packet_that_does_not_fit_is_dropped(make: Make, ring: set[int], far: socket.socket) -> None:
    card = make(ring, ALL - {Net.MRG_RXBUF})
    far.send(frame(size=9000))
    far.send(frame())
    assert [packet.frame for packet in card.await_packets()] == [frame()]
    assert card.device.dropped == 1


def test_a_packet_waits_for_buffers(make: Make, ring: set[int], far: socket.socket) -> None:
    card = make(ring, buffers=2)
    for n in range(3):
        far.send(frame(size=1500, fill=n))
    assert card.driver.guest.poll(PATIENCE)
    queue = card.driver.queues[0]
    assert len(queue.answers()) == 2
    assert not card.driver.guest.poll(), "the socket is watched, and there is no use for what it has"
    assert queue.wants_notification()
    card.refill(1)
    queue.kick()
    (packet,) = card.received()
    assert packet.frame[-1] == 2


def test_a_packet_that_needs_more_buffers_than_there_are_leaves_them_alone(
    make: Make, ring: set[int], far: socket.socket
) -> None:
    card = make(ring, buffers=3)
    far.send(frame(size=9000))
    assert card.driver.guest.poll(PATIENCE)
    queue = card.driver.queues[0]
    for _ in range(3):
        assert card.received() == []
        assert not card.device.lanes[0].waits_for_turn, "it tries again and again"
        assert not card.driver.guest.poll()
        assert queue.wants_notification()
        card.refill(1)
        queue.kick()
    (packet,) = card.received()
    assert len(packet.frame) == 9000


def test_a_packet_that_no_ring_of_buffers_can_hold_is_dropped(make: Make, ring: set[int], far: socket.socket) -> None:
    card = make(ring, buffers=64, room=64)
    far.send(frame(size=9000))
    far.send(frame(fill=7))
    (packet,) = card.await_packets()
    assert packet.frame[-1] == 7
    assert card.device.dropped == 1


def test_more_than_a_batch_is_not_forgotten(make: Make, far: socket.socket) -> None:
    card = make(buffers=60)
    far.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 200:
            far.send(frame(fill=sent))
            sent += 1
    packets = card.await_packets(sent)
    assert [packet.frame[-1] for packet in packets] == list(range(sent))


@pytest.mark.parametrize("frame", [b"", b"x", b"x" * 13, bytes(66_000)], ids=len)
def test_a_packet_that_cannot_be_is_dropped(make: Make, frame: bytes) -> None:
    card = make()
    card.send(frame)
    assert card.device.dropped == 1


def test_without_a_peer_packets_are_dropped(make: Make, far: socket.socket) -> None:
    card = make()
    far.close()
    card.send(frame())
    assert card.device.dropped == 1


def test_the_configuration_has_address_and_link(make: Make) -> None:
    driver = make().driver
    assert driver.config(0, 6).to_bytes(6, "little") == OURS
    assert [driver.config(n, 1) for n in range(6)] == list(OURS)
    assert driver.config(6, 2) == 1


def test_an_address_is_made_up_where_none_is_given(make: Make) -> None:
    driver = make(mac="").driver
    first = driver.config(0, 1)
    assert first & 3 == 2  # local, of one card


def test_offloads_are_not_offered_where_headers_do_not_travel(make: Make) -> None:
    driver = make().driver
    assert not driver.offered() & {Net.CSUM, Net.GUEST_CSUM, Net.HOST_TSO4, Net.GUEST_TSO4, Net.CTRL_GUEST_OFFLOADS}


def test_the_mtu_is_offered_if_it_is_set(make: Make) -> None:
    driver = make((), {*ALL, Net.MTU}, mtu=9000).driver
    assert driver.config(0x0A, 2) == 9000


def test_the_cable_can_be_pulled_and_put_back(make: Make, far: socket.socket) -> None:
    card = make()
    card.driver.set_common(0x10, 0, 2)
    card.device.set_link(False)
    assert card.driver.config(6, 2) == 0
    assert card.driver.guest.interrupts[IrqIndex.MSIX, 0] == 1
    card.send(frame())
    far.send(frame(fill=1))
    card.driver.guest.poll(PATIENCE)
    card.device.set_link(True)
    assert card.driver.config(6, 2) == 1
    far.send(frame(fill=2))
    assert [packet.frame[-1] for packet in card.await_packets()] == [2]
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        far.recv(2000)


def test_the_cable_is_an_option_too(make: Make) -> None:
    card = make(link=False)
    assert card.driver.config(6, 2) == 0
    card.device.change("link", "yes")
    assert card.driver.config(6, 2) == 1


def test_the_link_stays_as_it_is_through_a_reset(make: Make) -> None:
    card = make()
    card.device.set_link(False)
    card.driver.status = Status(0)
    assert card.driver.config(6, 2) == 0


def test_after_a_reset_nothing_is_received(make: Make, far: socket.socket) -> None:
    card = make()
    card.driver.status = Status(0)
    far.send(frame())
    assert not card.driver.guest.poll()


def test_a_client_that_has_gone_ends_the_flow(make: Make, far: socket.socket) -> None:
    card = make()
    card.device.core.join(False)
    far.send(frame())
    assert card.driver.guest.poll(PATIENCE)
    assert not card.driver.guest.poll()
    assert Status.NEEDS_RESET not in card.driver.status


def test_without_bus_mastering_packets_wait(make: Make, far: socket.socket) -> None:
    card = make()
    card.driver.guest.config_write(pci.COMMAND, pci.MEMORY_ENABLE, 2)
    far.send(frame())
    assert card.driver.guest.poll(PATIENCE)
    assert card.received() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs one of tap="),
        ({"tap": "tap0", "dgram": Path("x")}, "needs one of tap="),
        ({"dgram": Path("x"), "pairs": 2}, "1 on a socket"),
        ({"tap": "tap0", "pairs": 9}, "pairs=9: expected 1 to 8"),
        ({"dgram": Path("x"), "mtu": 60}, "mtu=60: expected 0 or 68 to 65535"),
        ({"dgram": Path("x"), "mac": "hello"}, "mac=hello: expected six bytes"),
        ({"dgram": Path("x"), "mac": "01:00:00:00:00:00"}, "no multicast"),
        ({"tap": "a name that is too long"}, "tap=a name that is too long: expected an interface's name"),
        ({"tap": "a/b"}, "an interface's name"),
        ({"dgram": Path("/tmp/" + "x" * 200)}, "expected a socket's path: at most 107 bytes"),
        ({"stream": Path("/tmp/" + "x" * 200)}, "expected a socket's path: at most 107 bytes"),
        ({"tap": "tap0", "bridge": "br0", "vxlan": "0@192.0.2.1"}, "vxlan=0@192.0.2.1: expected NUMBER@ADDRESS"),
        ({"tap": "tap0", "bridge": "br0", "vxlan": "7@nowhere"}, "expected NUMBER@ADDRESS"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Guest(VirtioNet, **options)


def test_features_of_the_transport_are_offered_too(make: Make) -> None:
    assert Feature.RING_PACKED in make().driver.offered()


def test_header_size_is_what_the_specification_says() -> None:
    assert HEADER.size == 12


def test_the_meter_counts_packets_and_bytes_without_virtios_header(card: Card, far: socket.socket) -> None:
    card.send(b"t" * 100)
    far.send(b"\xff" * 60)
    card.await_packets()
    meter = card.device.meter.to_dict()
    assert meter["totals"] == {"receive": (1, 60), "transmit": (1, 100)}
    assert sum(meter["latency"]) == 1
