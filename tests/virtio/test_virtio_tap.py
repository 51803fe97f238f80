"""virtio-net on a real tap, in a network namespace of the tests' own."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bellwire.bundled.virtio_net import VirtioNet
from bellwire.network import LinkError, TapLink
from bellwire.network.features import Net
from bellwire.network.interface import Settings, configure, is_set_up
from bellwire.testing import Guest
from bellwired.box import needs
from virtio.card import ALL, HEADER, PATIENCE, PLAIN, Card, Packet
from virtio.driver import READY
from virtio.namespace import Namespace, own_namespace
from virtio.stack import IPV4, UDP, Stack, checksum, ethernet, ipv4, udp

TAP = "bwtap0"
OURS, THEIRS = "10.99.0.2", "10.99.0.1"
MAC = bytes.fromhex("525400123456")
PORT = 4567
NEEDS_CHECKSUM, VALID = 1, 2
CHECKSUMS = {Net.CSUM, Net.GUEST_CSUM}
SEGMENTS = CHECKSUMS | {Net.GUEST_TSO4, Net.GUEST_TSO6, Net.HOST_TSO4, Net.HOST_TSO6}
Make = Callable[..., Card]


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with own_namespace() as namespace:
        yield namespace


@pytest.fixture
def make(namespace: Namespace) -> Iterator[Make]:
    """Make a card on a tap whose other side has an address."""
    with contextlib.ExitStack() as stack:

        def make(features: set[int] | frozenset[int] = frozenset(), **options: Any) -> Card:
            options = {"mac": "52:54:00:12:34:56", "tap": TAP, "namespace": namespace.name} | options
            card = Card((), ALL | features, **{"buffers": 16} | options)
            stack.callback(card.close)
            namespace.address(TAP, THEIRS)
            return card

        yield make


class Host:
    """Sockets at the other side."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._stack = contextlib.ExitStack()

    def socket(self, kind: int, protocol: int = 0) -> socket.socket:
        made = self._namespace.inside(lambda: socket.socket(socket.AF_INET, kind, protocol))
        made.settimeout(PATIENCE)
        return self._stack.enter_context(made)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def host(namespace: Namespace) -> Iterator[Host]:
    with contextlib.closing(Host(namespace)) as host:
        yield host


def answering(card: Card, wanted: Callable[[bytes], bool], pairs: int = 1) -> Packet:
    """Answer ARP and pings until a frame comes that is ``wanted``."""
    stack = Stack(MAC, socket.inet_aton(OURS))
    while True:
        for packet in card.await_packets(pairs=pairs):
            if (reply := stack.answer(packet.frame)) is not None:
                card.send(reply)
            if wanted(packet.frame):
                return packet


def is_udp(frame: bytes) -> bool:
    return frame[12:14] == IPV4.to_bytes(2, "big") and frame[23] == UDP and frame[36:38] == PORT.to_bytes(2, "big")


def is_echo(frame: bytes) -> bool:
    return frame[12:14] == IPV4.to_bytes(2, "big") and frame[23] == 1 and frame[34] == 8


def test_an_interface_that_is_as_it_shall_be_is_left_alone_without_netlink(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_it_is = Settings(mtu=1400)

    def netlink(settings: Settings) -> bool:
        monkeypatch.setitem(sys.modules, "pyroute2", None)  # an import fails
        try:
            configure(TAP, settings)
        except ImportError:
            return True
        finally:
            monkeypatch.undo()
        return False

    def work() -> None:
        assert not is_set_up(TAP, as_it_is), "there is none yet"
        with contextlib.closing(TapLink(TAP, settings=as_it_is)):
            for settings in (as_it_is, Settings(), Settings(up=False)):
                assert not netlink(settings)
                assert not needs.of_bundled(VirtioNet, {"tap": TAP, "mtu": settings.mtu, "up": settings.up}).netlink
            for settings in (Settings(mtu=1500), Settings(bridge="br0"), Settings(address="52:54:00:12:34:56")):
                assert netlink(settings)
            for options in ({"mtu": 1500}, {"bridge": "br0"}, {"macvtap": "eth0"}, {"namespace": "elsewhere"}):
                assert needs.of_bundled(VirtioNet, {"tap": TAP, **options}).netlink
        with contextlib.closing(TapLink(TAP, settings=Settings(up=False))):
            assert is_set_up(TAP, Settings(up=False))
            assert not is_set_up(TAP, Settings())

    namespace.inside(work)


@pytest.mark.parametrize("features", [set(), CHECKSUMS, SEGMENTS], ids=["plain", "checksums", "segments"])
def test_a_ping_is_answered(make: Make, host: Host, features: set[int]) -> None:
    card = make(features)
    pinger = host.socket(socket.SOCK_RAW, socket.IPPROTO_ICMP)
    pinger.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FF, 0, 0x0000), (OURS, 0))
    answering(card, is_echo)
    reply, peer = pinger.recvfrom(1000)
    assert peer[0] == OURS
    assert reply[20] == 0


def test_without_offloads_checksums_are_complete(make: Make, host: Host) -> None:
    card = make()
    host.socket(socket.SOCK_DGRAM).sendto(b"hello", (OURS, PORT))
    packet = answering(card, is_udp)
    assert packet.header[0] & NEEDS_CHECKSUM == 0
    assert packet.frame[42:47] == b"hello"
    assert checksum_of(packet.frame[34:47], packet.frame[26:30], packet.frame[30:34]) == 0


def checksum_of(datagram: bytes, source: bytes, to: bytes) -> int:
    return checksum(source + to + struct.pack("!HH", UDP, len(datagram)) + datagram)


def test_with_offloads_the_guest_gets_checksums_to_finish(make: Make, host: Host) -> None:
    card = make(CHECKSUMS)
    host.socket(socket.SOCK_DGRAM).sendto(b"hello", (OURS, PORT))
    packet = answering(card, is_udp)
    flags, _, _, _, start, offset, _ = packet.header
    assert (flags & NEEDS_CHECKSUM, start, offset) == (1, 34, 6)


@pytest.mark.parametrize("partial", [False, True], ids=["complete", "partial"])
def test_a_datagram_of_the_guests_arrives(make: Make, host: Host, namespace: Namespace, partial: bool) -> None:
    card = make(CHECKSUMS)
    receiver = host.socket(socket.SOCK_DGRAM)
    receiver.bind((THEIRS, PORT))
    ours, theirs = socket.inet_aton(OURS), socket.inet_aton(THEIRS)
    to = bytes.fromhex(namespace.link(TAP).get("address").replace(":", ""))
    payload = udp(ours, theirs, PORT, b"from the guest", partial=partial)
    header = HEADER.pack(NEEDS_CHECKSUM, 0, 0, 0, 34, 6, 0) if partial else HEADER.pack(0, 0, 0, 0, 0, 0, 0)
    card.send(ethernet(to, MAC, IPV4, ipv4(ours, theirs, UDP, payload)), header)
    assert receiver.recv(100) == b"from the guest"


def test_a_burst_arrives_in_order_in_buffers_of_any_size(make: Make, namespace: Namespace) -> None:
    """Small packets into a buffer each; large ones exceed theirs, and take several."""
    card = make(room=300, buffers=48)
    sent = [
        bytes.fromhex("ffffffffffff02000000000188b5").ljust(size, bytes([n]))
        for n, size in enumerate([60, 60, 1514, 60, 288, 289, 60, 1000, 60, 60])
    ]
    with namespace.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as host:
        host.bind((TAP, 0))
        for one in sent:
            host.send(one)
    came: list[bytes] = []
    while len(came) < len(sent):
        came += [packet.frame for packet in card.await_packets() if packet.frame[12:14] == b"\x88\xb5"]
    assert came == sent


def test_a_burst_is_sent_in_order(make: Make, namespace: Namespace) -> None:
    card = make()
    queue = card.driver.queues[1]
    sent = [bytes.fromhex("ffffffffffff02000000000188b5").ljust(60, bytes([n])) for n in range(20)]
    with namespace.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0xB588)) as host:
        host.settimeout(PATIENCE)
        queue.send(PLAIN + sent[0])
        for one in sent[1:]:
            queue.add(PLAIN + one)
        queue.kick()
        assert len(queue.used()) == 20
        assert [host.recv(2000) for _ in sent] == sent


def test_a_header_that_makes_no_sense_is_dropped(make: Make) -> None:
    card = make(CHECKSUMS)
    card.send(bytes(60), HEADER.pack(NEEDS_CHECKSUM, 0xFF, 0, 0, 5000, 6, 0))
    assert card.device.dropped == 1


def test_offloads_can_be_given_up_while_at_work(make: Make, host: Host) -> None:
    card = make(CHECKSUMS | {Net.CTRL_GUEST_OFFLOADS})
    assert card.command(5, 0, struct.pack("<Q", 0))
    host.socket(socket.SOCK_DGRAM).sendto(b"hello", (OURS, PORT))
    assert answering(card, is_udp).header[0] & NEEDS_CHECKSUM == 0
    assert not card.command(5, 0, struct.pack("<Q", 1 << Net.GUEST_TSO4))


@pytest.mark.parametrize("alone", [Net.GUEST_TSO4, Net.GUEST_TSO6, Net.GUEST_ECN])
def test_an_offload_without_what_it_requires_is_void(make: Make, host: Host, alone: Net) -> None:
    card = make({alone})
    host.socket(socket.SOCK_DGRAM).sendto(b"hello", (OURS, PORT))
    assert answering(card, is_udp).header[0] & NEEDS_CHECKSUM == 0


def test_offloads_without_what_they_require_can_be_asked_for(make: Make) -> None:
    card = make(SEGMENTS | {Net.GUEST_ECN, Net.CTRL_GUEST_OFFLOADS})
    for bits in ({Net.GUEST_TSO4}, {Net.GUEST_CSUM, Net.GUEST_ECN}, {Net.GUEST_ECN}):
        assert card.command(5, 0, struct.pack("<Q", sum(1 << bit for bit in bits)))


def test_the_interface_is_set_up_and_gone_afterwards(namespace: Namespace) -> None:
    with contextlib.closing(TapLink("bwtap1", 1, Settings(namespace.name, mtu=1400))):
        link = namespace.link("bwtap1")
        assert link.get("mtu") == 1400
        assert link.get("state") == "up"
    assert not namespace.exists("bwtap1")


def test_an_interface_may_join_a_bridge(namespace: Namespace) -> None:
    namespace.routes(lambda routes: routes.link("add", ifname="bwbridge", kind="bridge"))
    with contextlib.closing(TapLink("bwtap1", 1, Settings(namespace.name, bridge="bwbridge"))):
        assert namespace.link("bwtap1").get("master") == namespace.link("bwbridge")["index"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bridge": "bwnone"}, "no interface bwnone"),
        ({"namespace": "bwnone"}, "network namespace bwnone: No such file"),
        ({"mtu": 20}, "cannot set mtu 20"),
    ],
)
def test_what_cannot_be_set_up_is_told(namespace: Namespace, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LinkError, match=message):
        TapLink("bwtap1", 1, Settings(**{"namespace": namespace.name, **settings}))
    assert not namespace.exists("bwtap1")


@pytest.mark.parametrize("name", ["", "x" * 16])
def test_a_name_that_no_interface_can_have_is_refused(name: str) -> None:
    with pytest.raises(LinkError, match="1 to 15 bytes"):
        TapLink(name)


def test_a_tap_is_nobody_elses(namespace: Namespace) -> None:
    settings = Settings(namespace.name)
    with contextlib.closing(TapLink("bwtap1", 1, settings)), pytest.raises(LinkError, match="somebody else has it"):
        TapLink("bwtap1", 1, settings)


def test_the_other_side_sees_the_cable_pulled(make: Make, namespace: Namespace) -> None:
    card = make()
    assert namespace.link(TAP).get("carrier") == 1
    card.device.set_link(False)
    assert namespace.link(TAP).get("carrier") == 0
    card.device.set_link(True)
    assert namespace.link(TAP).get("carrier") == 1


def test_a_tap_that_is_taken_away_is_a_link_that_is_down(make: Make, namespace: Namespace) -> None:
    card = make()
    namespace.routes(lambda routes: routes.link("del", ifname=TAP))
    while card.device.link_up:
        assert card.driver.guest.poll(PATIENCE)
    assert card.driver.config(6, 2) == 0
    assert not card.driver.guest.poll()
    card.driver.start(SEGMENTS, range(3))
    assert card.driver.status == READY


def test_several_pairs_of_queues_are_used_once_the_driver_says_so(make: Make, host: Host) -> None:
    card = make({Net.MQ}, pairs=4, memory=32 << 20)
    assert card.driver.config(8, 2) == 4
    assert [end.attached for end in card.device.wire.ends] == [True, False, False, False]  # type: ignore[attr-defined]
    assert card.command(4, 0, struct.pack("<H", 3))
    assert [end.attached for end in card.device.wire.ends] == [True, True, True, False]  # type: ignore[attr-defined]
    pinger = host.socket(socket.SOCK_RAW, socket.IPPROTO_ICMP)
    stack = Stack(MAC, socket.inet_aton(OURS))
    pinger.sendto(struct.pack("!BBHHH", 8, 0, 0xF7FF, 0, 0), (OURS, 0))
    echoed = False
    while not echoed:
        assert card.driver.guest.poll(PATIENCE)
        for pair in range(3):
            for packet in card.received(pair):
                if (reply := stack.answer(packet.frame)) is not None:
                    card.send(reply, pair=2)
                echoed = echoed or is_echo(packet.frame)
    assert pinger.recvfrom(1000)[1][0] == OURS


def test_pairs_and_offloads_survive_in_a_snapshot(make: Make, host: Host) -> None:
    card = make({Net.MQ, Net.CTRL_GUEST_OFFLOADS} | CHECKSUMS, pairs=2, memory=32 << 20)
    assert card.command(4, 0, struct.pack("<H", 2))
    assert card.command(5, 0, struct.pack("<Q", 0))
    core = card.device.core
    core.restore(core.snapshot())
    assert [end.attached for end in card.device.wire.ends] == [True, True]  # type: ignore[attr-defined]
    host.socket(socket.SOCK_DGRAM).sendto(b"hello", (OURS, PORT))
    assert answering(card, is_udp, pairs=2).header[0] & NEEDS_CHECKSUM == 0
    card.driver.start(ALL | CHECKSUMS, range(3))
    assert [end.attached for end in card.device.wire.ends] == [True, False]  # type: ignore[attr-defined]


def test_a_driver_that_knows_of_one_pair_gets_no_second(make: Make) -> None:
    card = make(pairs=2, memory=32 << 20)
    assert not card.command(4, 0, struct.pack("<H", 2))


def test_the_device_leaves_no_thread_and_no_descriptor(namespace: Namespace, open_fds: set[int]) -> None:
    threads = threading.active_count()
    with Guest(VirtioNet, tap="bwtap1", namespace=namespace.name):
        pass
    assert threading.active_count() == threads
    left = {int(name) for name in os.listdir("/proc/self/fd")} - open_fds
    assert not [fd for fd in left if os.path.exists(f"/proc/self/fd/{fd}")]
