"""virtio-net on UNIX sockets (virtio 1.2 §5.1): packets, buffers, filters, the control queue, the link."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwire import OptionError
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.bundled.virtio_net.features import Net
from bellwire.model import capabilities as pci
from bellwire.network import LinkError
from bellwire.testing import Guest, conformance
from bellwire.virtio import Feature, Status
from vfio_user import IrqIndex
from virtio.card import ALL, HEADER, PATIENCE, PLAIN, Card

OURS = bytes.fromhex("525400123456")
THEIRS = bytes.fromhex("020000000001")
MANY = bytes.fromhex("01005e000001")
EVERYBODY = b"\xff" * 6
Make = Callable[..., Card]

TestVirtioNet = conformance(VirtioNet, dgram=Path("/nobody/is/there"))


def frame(to: bytes = OURS, size: int = 60, fill: int = 0) -> bytes:
    return (to + THEIRS + b"\x88\xb5").ljust(size, bytes([fill]))


def tagged(vlan: int) -> bytes:
    return (OURS + THEIRS + b"\x81\x00" + vlan.to_bytes(2, "big") + b"\x88\xb5").ljust(60, b"\0")


@pytest.fixture
def far(tmp_path: Path) -> Iterator[socket.socket]:
    """The other side's datagram socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        far.bind(os.fspath(tmp_path / "far"))
        far.settimeout(PATIENCE)
        yield far


@pytest.fixture
def make(tmp_path: Path, far: socket.socket) -> Iterator[Make]:
    """Make a card whose other side is ``far``; the two are joined."""
    with contextlib.ExitStack() as stack:

        def make(*arguments: Any, **options: Any) -> Card:
            options = {"mac": "52:54:00:12:34:56", "dgram": tmp_path / "far", "local": tmp_path / "near"} | options
            card = Card(*arguments, **options)
            stack.callback(card.close)
            far.connect(os.fspath(tmp_path / "near"))
            return card

        yield make


@pytest.fixture
def card(make: Make, ring: set[int]) -> Card:
    return make(ring)


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


KINDS = {"ours": OURS, "another": bytes.fromhex("020000000099"), "many": MANY, "everybody": EVERYBODY}


class Filtering:
    """Which of some frames come in."""

    def __init__(self, card: Card, far: socket.socket) -> None:
        self.card = card
        self.far = far

    def admitted(self) -> set[str]:
        for to in KINDS.values():
            self.far.send(frame(to))
        self.far.send(frame(OURS, fill=0xFF))  # if ours are taken in, this one ends the wait
        self.card.driver.guest.poll(PATIENCE)
        found = {packet.frame[:6] for packet in self.card.received()}
        return {name for name, address in KINDS.items() if address in found}


@pytest.fixture
def filtering(make: Make, far: socket.socket) -> Filtering:
    return Filtering(make(), far)


def test_a_card_starts_by_taking_everything(filtering: Filtering) -> None:
    assert filtering.admitted() == set(KINDS)


def test_a_selective_card_takes_what_is_for_it(filtering: Filtering) -> None:
    assert filtering.card.command(0, 0, b"\0")
    assert filtering.admitted() == {"ours", "everybody"}
    assert filtering.card.command(0, 0, b"\1")
    assert filtering.admitted() == set(KINDS)


@pytest.mark.parametrize(
    ("number", "admitted"),
    [
        (1, {"ours", "everybody", "many"}),
        (2, {"ours", "everybody", "another"}),
        (5, {"ours"}),
        (4, {"everybody"}),
    ],
    ids=["allmulti", "alluni", "nobcast", "nouni"],
)
def test_modes(filtering: Filtering, number: int, admitted: set[str]) -> None:
    assert filtering.card.command(0, 0, b"\0")
    assert filtering.card.command(0, number, b"\1")
    assert filtering.admitted() == admitted


def table(*addresses: bytes) -> bytes:
    return struct.pack("<I", len(addresses)) + b"".join(addresses)


def test_addresses_can_be_added(filtering: Filtering) -> None:
    assert filtering.card.command(0, 0, b"\0")
    assert filtering.card.command(1, 0, table(KINDS["another"]) + table(MANY))
    assert filtering.admitted() == set(KINDS)
    assert filtering.card.command(1, 0, table() + table())
    assert filtering.admitted() == {"ours", "everybody"}


def test_too_many_addresses_are_all(filtering: Filtering) -> None:
    assert filtering.card.command(0, 0, b"\0")
    assert filtering.card.command(1, 0, table() + table(*[bytes([1, 0, 0, 0, 0, n]) for n in range(65)]))
    assert filtering.admitted() == {"ours", "everybody", "many"}


def test_the_card_can_be_given_another_address(filtering: Filtering) -> None:
    card = filtering.card
    assert card.command(0, 0, b"\0")
    assert card.command(1, 1, KINDS["another"])
    assert filtering.admitted() == {"another", "everybody"}
    assert card.driver.config(0, 6).to_bytes(6, "little") == KINDS["another"]
    card.driver.status = Status(0)
    assert card.driver.config(0, 6).to_bytes(6, "little") == OURS


def test_vlans_are_told_apart_once_that_is_negotiated(make: Make, far: socket.socket) -> None:
    card = make((), {*ALL, Net.CTRL_VLAN})
    assert card.command(2, 0, struct.pack("<H", 5))
    for vlan in (4, 5, 6):
        far.send(tagged(vlan))
    far.send(frame())
    assert [packet.frame for packet in card.await_packets(2)] == [tagged(5), frame()]
    assert card.command(2, 1, struct.pack("<H", 5))
    far.send(tagged(5))
    far.send(frame())
    assert [packet.frame for packet in card.await_packets(1)] == [frame()]


@pytest.mark.parametrize(
    ("kind", "number", "data"),
    [
        (9, 0, b""),
        (0, 6, b"\1"),
        (0, 0, b""),
        (1, 0, b"\xff\xff\xff\xff"),
        (1, 0, table() + table() + b"more"),
        (1, 1, MANY),
        (1, 1, b"short"),
        (2, 0, struct.pack("<H", 4096)),
        (2, 0, b"\0"),
        (4, 0, struct.pack("<H", 2)),
        (4, 0, struct.pack("<H", 0)),
        (5, 0, struct.pack("<Q", 2)),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(make: Make, kind: int, number: int, data: bytes) -> None:
    assert not make().command(kind, number, data)


def test_filters_survive_in_a_snapshot(make: Make, far: socket.socket, tmp_path: Path) -> None:
    card = make()
    assert card.command(0, 0, b"\0")
    core = card.driver.guest.device.core
    before = core.snapshot()
    assert card.command(0, 0, b"\1")
    core.restore(before)
    assert Filtering(card, far).admitted() == {"ours", "everybody"}


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


# -- the stream


@pytest.fixture
def stream(tmp_path: Path, ring: set[int]) -> Iterator[tuple[Card, Callable[[], socket.socket]]]:
    """A card that listens, and a way to connect to it."""
    path = tmp_path / "stream"
    with contextlib.ExitStack() as stack:
        card = Card(ring, stream=path, listen=True, mac="52:54:00:12:34:56")
        stack.callback(card.close)

        def connect() -> socket.socket:
            far = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            far.settimeout(PATIENCE)
            far.connect(os.fspath(path))
            assert card.driver.guest.poll(PATIENCE)
            return far

        yield card, connect


def with_length(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def test_frames_on_a_stream_have_their_length_before_them(
    stream: tuple[Card, Callable[[], socket.socket]],
) -> None:
    card, connect = stream
    far = connect()
    card.send(frame(THEIRS))
    assert far.recv(2000) == with_length(frame(THEIRS))
    far.sendall(with_length(frame(fill=1)) + with_length(frame(fill=2))[:30])
    assert [packet.frame[-1] for packet in card.await_packets()] == [1]
    far.sendall(with_length(frame(fill=2))[30:])
    assert [packet.frame[-1] for packet in card.await_packets()] == [2]


def test_when_the_peer_goes_the_next_may_come(stream: tuple[Card, Callable[[], socket.socket]]) -> None:
    card, connect = stream
    connect().close()
    assert card.driver.guest.poll(PATIENCE)
    far = connect()
    far.sendall(with_length(frame()))
    assert len(card.await_packets()) == 1


@pytest.mark.parametrize("length", [0, 1 << 20, 0xFFFF_FFFF])
def test_a_length_that_cannot_be_ends_the_connection(tmp_path: Path, length: int) -> None:
    card = Card(stream=tmp_path / "stream", listen=True)
    with contextlib.closing(card), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as far:
        far.settimeout(PATIENCE)
        far.connect(os.fspath(tmp_path / "stream"))
        far.sendall(struct.pack(">I", length))
        assert card.driver.guest.poll(PATIENCE)
        assert far.recv(1) == b""


def test_a_peer_that_does_not_read_loses_whole_frames_only(
    stream: tuple[Card, Callable[[], socket.socket]],
) -> None:
    card, connect = stream
    far = connect()
    big = frame(THEIRS, size=60_000)
    sent = 0
    while not card.device.dropped:
        card.send(big)
        sent += 1
    far.setblocking(False)
    data = bytearray()
    while True:
        try:
            data += far.recv(1 << 20)
        except BlockingIOError:
            if not card.driver.guest.poll():
                break
    count, rest = divmod(len(data), len(big) + 4)
    assert rest == 0
    assert count == sent - card.device.dropped
    assert data == with_length(big) * count


def test_a_card_may_connect_itself(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(tmp_path / "stream"))
        listener.listen()
        with contextlib.closing(Card(stream=tmp_path / "stream")) as card:
            far, _ = listener.accept()
            with far:
                far.settimeout(PATIENCE)
                card.send(frame(THEIRS))
                assert far.recv(2000) == with_length(frame(THEIRS))


@pytest.mark.parametrize("sending", [False, True])
def test_a_peer_that_was_called_and_has_gone_is_a_link_that_is_down(tmp_path: Path, sending: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(tmp_path / "stream"))
        listener.listen()
        with contextlib.closing(Card(stream=tmp_path / "stream")) as card:
            listener.accept()[0].close()
            if sending:
                card.send(frame(THEIRS))
            assert card.driver.guest.poll(PATIENCE)
            assert card.driver.config(6, 2) == 0
            assert not card.driver.guest.poll()


def test_a_stream_to_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"stream: No such file"):
        Guest(VirtioNet, stream=tmp_path / "stream")


def test_a_file_in_the_way_of_a_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("kept")
    with pytest.raises(LinkError, match="in use"):
        Guest(VirtioNet, local=path)
    assert path.read_text() == "kept"


def test_header_size_is_what_the_specification_says() -> None:
    assert HEADER.size == 12
