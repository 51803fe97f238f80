"""The kernel's own vhost back ends under drivers of the tests' own, without a guest. For a kernel that has them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute

from bellwire.bundled.vhost import Vhost
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.network.features import Net
from bellwire.vhost import kernel
from bellwire.vhost.errors import BackendError, BackendLost
from bellwire.virtio import Feature, Status
from killing import remains, succeed
from vfio_user import Client, DmaFlags, DmaMap, DmaUnmap, IrqIndex
from virtio.card import HEADER, PLAIN
from virtio.driver import READY, Driver
from virtio.rings import WRITE
from virtio.stack import IPV4, UDP, ethernet, ipv4, udp

TAP = "bell0"
MAC, HOST_MAC = bytes.fromhex("525400123456"), bytes.fromhex("020000000099")
OURS, THEIRS = "10.98.0.2", "10.98.0.1"
PORT = 4567
NEEDS_CHECKSUM = 1
PATIENCE = 20.0
ROOM = 2048
CID, HOST_CID = 42, 2
VSOCK = struct.Struct("<QQIIIHHIII")  # struct virtio_vsock_hdr (§5.10.6)
REQUEST, RESPONSE, SHUTDOWN, DATA = 1, 2, 4, 5


def until(driver: Driver, true: Callable[[], object]) -> None:
    """Let time pass until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        driver.guest.poll(0.01)
        driver.guest.advance(0.1)


class Card:
    """A card whose packets the kernel moves, and its driver."""

    def __init__(self, kind: type[Vhost | VirtioNet], **options: Any) -> None:
        self.driver = Driver(kind, **options)
        self.pairs = options.get("pairs", 1)
        self.options = options

    def drive(self, features: set[int]) -> None:
        """The driver begins anew."""
        driver = self.driver
        assert driver.negotiate(features)
        for index in range(2 * self.pairs + (Net.CTRL_VQ in features)):
            driver.add_queue(index, 64)
        for pair in range(self.pairs):
            self.offer(16, pair)
        driver.status |= Status.DRIVER_OK

    def offer(self, count: int, pair: int = 0) -> None:
        for _ in range(count):
            self.driver.queues[2 * pair].add(write=ROOM)

    def ring(self, index: int) -> None:
        self.driver.guest.ring(type(self.driver.device).notify, index=index)

    def send(self, payload: bytes, pair: int = 0, header: bytes = PLAIN) -> None:
        """Send a datagram to the host. The packet is gone when this returns."""
        source, to = socket.inet_aton(OURS), socket.inet_aton(THEIRS)
        packet = ipv4(source, to, UDP, udp(source, to, PORT, payload))
        queue = self.driver.queues[2 * pair + 1]
        queue.add(header, ethernet(HOST_MAC, MAC, IPV4, packet))
        self.ring(queue.index)
        until(self.driver, queue.used)

    def receive(self, pairs: int = 1) -> tuple[int, bytes]:
        """The flags of the next datagram's header, and its content."""
        found: list[tuple[int, bytes]] = []

        def came() -> bool:
            for pair in range(pairs):
                for packet in self.driver.queues[2 * pair].answers():
                    frame = packet[HEADER.size :]
                    if frame[12:14] == IPV4.to_bytes(2, "big") and frame[23] == UDP:
                        found.append((packet[0], frame[42 : 34 + int.from_bytes(frame[38:40], "big")]))
            return bool(found)

        until(self.driver, came)
        (packet,) = found
        return packet

    def close(self) -> None:
        """Close the driver that it has by now."""
        self.driver.close()

    def command(self, kind: int, number: int, data: bytes) -> bool:
        control = self.driver.queues[2 * self.pairs]
        control.send(bytes([kind, number]), data, write=1)
        (answer,) = control.answers()
        return answer == b"\0"


def set_up_tap() -> None:
    """Give the tap addresses, and tell it the card's."""
    with IPRoute() as routes:
        (index,) = routes.link_lookup(ifname=TAP)
        routes.link("set", index=index, address=HOST_MAC.hex(":"))
        routes.addr("replace", index=index, address=THEIRS, prefixlen=24)
        routes.neigh("replace", dst=OURS, lladdr=MAC.hex(":"), ifindex=index, state=0x80)


@pytest.fixture
def make() -> Iterator[Callable[..., Card]]:
    """Make a card on a tap whose other side has an address, and knows the card's."""
    with contextlib.ExitStack() as stack:

        def make(kind: type[Vhost | VirtioNet] = Vhost, features: set[int] | None = None, **options: Any) -> Card:
            usual: dict[str, Any] = {"mac": MAC.hex(":")}
            usual |= {"backend": f"vhost-net:{TAP}"} if kind is Vhost else {"tap": TAP, "offload": "vhost-net"}
            card = Card(kind, **usual | options)
            stack.callback(card.close)
            card.drive(features or {Net.MRG_RXBUF})
            set_up_tap()
            return card

        yield make


@pytest.fixture
def host() -> Iterator[socket.socket]:
    """A socket of the host's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("0.0.0.0", PORT))
        made.settimeout(PATIENCE)
        yield made


Make = Callable[..., Card]


@pytest.mark.parametrize("kind", [Vhost, VirtioNet])
def test_datagrams_go_both_ways(make: Make, host: socket.socket, kind: type[Vhost | VirtioNet]) -> None:
    card = make(kind)
    for number in range(3):
        card.send(b"out %d" % number)
        assert host.recv(100) == b"out %d" % number
        host.sendto(b"in %d" % number, (OURS, PORT))
        assert card.receive()[1] == b"in %d" % number
    until(card.driver, lambda: all(card.driver.guest.interrupts[IrqIndex.MSIX, vector] for vector in (1, 2)))


@pytest.mark.parametrize(("features", "flags"), [(set(), 0), ({Net.CSUM, Net.GUEST_CSUM}, NEEDS_CHECKSUM)])
def test_the_host_leaves_checksums_to_a_driver_that_takes_them(
    make: Make, host: socket.socket, features: set[int], flags: int
) -> None:
    card = make(features={Net.MRG_RXBUF, *features})
    host.sendto(b"in", (OURS, PORT))
    assert card.receive() == (flags, b"in")


def test_the_driver_is_offered_what_the_kernel_and_the_tap_have(make: Make) -> None:
    offered = make().driver.offered()
    assert {Feature.EVENT_IDX, Feature.INDIRECT_DESC, Net.MRG_RXBUF, Net.CSUM, Net.GUEST_TSO4, Net.HOST_TSO6} <= offered
    assert not {Feature.RING_PACKED, Net.CTRL_VQ, Net.MQ} & offered


def test_several_pairs_are_used_as_the_driver_says(make: Make, host: socket.socket) -> None:
    features = {Net.MRG_RXBUF, Net.CTRL_VQ, Net.MQ}
    card = make(VirtioNet, features, pairs=2)
    assert not {Net.CTRL_RX, Net.CTRL_VLAN} & card.driver.offered(), "the kernel filters nothing"
    for used in (1, 2, 1):
        assert card.command(4, 0, used.to_bytes(2, "little"))
        for pair in range(used):
            card.send(b"by %d" % pair, pair)
            assert host.recv(100) == b"by %d" % pair
        host.sendto(b"in", (OURS, PORT))
        assert card.receive(pairs=used)[1] == b"in"


def test_while_the_cable_is_out_nothing_moves(make: Make, host: socket.socket) -> None:
    card = make(VirtioNet)
    device = card.driver.device
    assert isinstance(device, VirtioNet)
    device.set_link(False)
    queue = card.driver.queues[1]
    queue.add(PLAIN, bytes(60))
    card.ring(1)
    card.driver.guest.poll(0.2)
    assert not queue.used()
    device.set_link(True)
    until(card.driver, queue.used)
    card.send(b"again")
    assert host.recv(100) == b"again"


def test_rings_stop_for_a_snapshot_and_go_on_from_it(make: Make, host: socket.socket) -> None:
    card = make()
    card.send(b"before")
    snapshot = card.driver.guest.snapshot()
    card.send(b"meanwhile")
    card.driver.guest.restore(card.driver.guest.snapshot())
    card.send(b"after")
    assert [host.recv(100) for _ in range(3)] == [b"before", b"meanwhile", b"after"]
    assert snapshot


@pytest.mark.parametrize("kind", [Vhost, VirtioNet])
def test_the_successor_of_a_worker_that_died_goes_on_with_the_rings(
    make: Make, host: socket.socket, kind: type[Vhost | VirtioNet]
) -> None:
    card = make(kind)
    for number in range(70):  # once around
        card.send(b"%d" % number)
    driver = card.driver
    left = remains(driver.guest)
    driver.close()
    guest: Any = succeed(left, kind, **card.options)
    driver.guest, driver.device, driver.memory = guest, guest.device, guest.memory
    for queue in driver.queues.values():
        queue.memory = guest.memory
    set_up_tap()
    card.send(b"again")
    host.sendto(b"in", (OURS, PORT))
    assert card.receive()[1] == b"in"
    assert [host.recv(100) for _ in range(71)] == [*(b"%d" % number for number in range(70)), b"again"]


def test_a_reset_gives_the_rings_back_and_the_next_driver_gets_others(make: Make, host: socket.socket) -> None:
    card = make()
    card.send(b"one")
    card.drive({Net.MRG_RXBUF, Net.CSUM})
    card.send(b"two")
    assert [host.recv(100) for _ in range(2)] == [b"one", b"two"]


# -- drivers and clients that are up to something


@pytest.mark.parametrize(
    "address", [1 << 40, (8 << 20) - 16, 0xFFFF_FFFF_FFFF_FFF0], ids=["nowhere", "across-the-end", "wraps"]
)
def test_a_buffer_outside_guest_memory_is_an_error_of_the_ring(make: Make, address: int) -> None:
    card = make()
    queue = card.driver.queues[1]
    queue.describe(0, address, 4096, 0, 0)  # type: ignore[attr-defined]
    queue.offer(0)  # type: ignore[attr-defined]
    card.ring(1)
    until(card.driver, lambda: Status.NEEDS_RESET in card.driver.status or queue.word(queue.ring + 2))  # type: ignore[attr-defined]
    card.drive({Net.MRG_RXBUF})
    card.send(b"well again")


def test_a_ring_that_is_nonsense_asks_for_a_reset_and_the_next_driver_is_served(
    make: Make, host: socket.socket
) -> None:
    card = make()
    queue = card.driver.queues[1]
    queue.describe(0, 0x1000, 64, WRITE, 0)  # type: ignore[attr-defined]
    queue.offer(0xFFF)  # type: ignore[attr-defined]
    card.ring(1)
    until(card.driver, lambda: Status.NEEDS_RESET in card.driver.status)
    card.drive({Net.MRG_RXBUF})
    card.send(b"well again")
    assert host.recv(100) == b"well again"


def map_pieces(driver: Driver, count: int) -> None:
    """Map pieces of a memory file, none beside another."""
    dma = driver.guest._dma
    fd = os.memfd_create("pieces", os.MFD_CLOEXEC)
    os.ftruncate(fd, count << 13)
    for number in range(count):
        flags = DmaFlags.READ | DmaFlags.WRITE
        where = (1 << 32) + (number << 13)
        dma.map(DmaMap(flags=flags, offset=number << 13, address=where, size=4096), os.dup(fd))
    os.close(fd)


def unmap(driver: Driver, address: int, size: int) -> None:
    """The client takes memory back."""
    dma = driver.guest._dma
    request = DmaUnmap(address, size)
    driver.device.core.news.going(request)
    dma.unmap(dma.inside(request))


def test_more_pieces_of_memory_than_the_kernel_takes_ask_for_a_reset_that_heals_once_they_are_gone(
    make: Make, host: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    card = make()
    most = int(Path("/sys/module/vhost/parameters/max_mem_regions").read_text())
    map_pieces(card.driver, most - 1)
    card.driver.device.memory_changed()
    card.send(b"as many as it takes")
    unmap(card.driver, 1 << 32, most << 13)
    map_pieces(card.driver, most)
    card.driver.device.memory_changed()
    assert Status.NEEDS_RESET in card.driver.status
    assert "guest memory is in more pieces than the module vhost takes (max_mem_regions)" in caplog.text
    unmap(card.driver, 1 << 32, most << 13)
    card.drive({Net.MRG_RXBUF})
    card.send(b"well again")
    assert [host.recv(100) for _ in range(2)] == [b"as many as it takes", b"well again"]


def test_memory_that_the_client_takes_back_is_not_written_any_more(make: Make, host: socket.socket) -> None:
    card = make()
    driver = card.driver
    file = os.dup(driver.guest._memory_fd)
    before = os.pread(file, len(driver.memory), 0)
    unmap(driver, 0, len(driver.memory))
    assert isinstance(driver.device, Vhost)
    assert not driver.device.plane.running
    for _ in range(10):
        host.sendto(b"late", (OURS, PORT))
    driver.guest.poll(0.2)
    assert os.pread(file, len(before), 0) == before
    os.close(file)


# -- nodes


def test_without_permission_the_error_says_what_gives_it() -> None:
    child = os.fork()
    if not child:
        os.setuid(65534)
        try:
            kernel.VhostVsock(CID)
        except BackendLost as error:
            os._exit(0 if "not permitted: it takes the group of the device" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("backend", [f"vhost-net:{TAP}", f"vhost-vsock:{CID}"])
def test_the_box_lets_a_device_use_its_node(backend: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bellwired", "run", "vhost", "-o", f"backend={backend}"]
    with subprocess.Popen([*words, "--socket-path", tmp_path / "socket"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline(), "where it serves"
            with Client.connect(tmp_path / "socket", timeout=PATIENCE) as client:
                assert client.read(0, 0x14, 1) == b"\0"
            mine = [path for path in Path("/proc").glob("[0-9]*") if str(tmp_path) in (path / "cmdline").read_text()]
            filters = [
                line for path in mine for line in (path / "status").read_text().splitlines() if "Seccomp:" in line
            ]
            assert "Seccomp:\t2" in filters, "the device has a filter of system calls"
        finally:
            process.terminate()


# -- vsock


class Sockets:
    """A driver of vsock that listens at a port and sends back, in capitals, what it gets."""

    def __init__(self) -> None:
        self.driver = Driver(Vhost, backend=f"vhost-vsock:{CID}")
        assert self.driver.negotiate()
        for index in range(3):
            self.driver.add_queue(index, 16)
        for _ in range(8):
            self.driver.queues[0].add(write=4096)
        self.driver.status |= Status.DRIVER_OK
        self.got: list[tuple[int, bytes]] = []

    def gather(self, operation: int) -> bytes:
        """Wait for a packet of this kind; its payload, and a reply."""
        found: list[bytes] = []

        def came() -> bool:
            for packet in self.driver.queues[0].answers():
                source, to, source_port, port, size, _, what, _, _, _ = VSOCK.unpack_from(packet)
                assert (source, to) == (HOST_CID, CID)
                if what == operation:
                    self.peer = source_port, port
                    found.append(packet[VSOCK.size : VSOCK.size + size])
            return bool(found)

        until(self.driver, came)
        return found[0]

    def say(self, operation: int, payload: bytes = b"") -> None:
        peer, port = self.peer
        header = VSOCK.pack(CID, HOST_CID, port, peer, len(payload), 1, operation, 0, 1 << 16, 0)
        queue = self.driver.queues[1]
        queue.add(header, *([payload] if payload else []))
        self.driver.guest.ring(Vhost.notify, index=1)
        until(self.driver, queue.used)


def test_a_socket_of_the_host_talks_to_the_guest() -> None:
    sockets = Sockets()
    with sockets.driver, socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as host:
        assert sockets.driver.config(0, 8) == CID
        host.setblocking(False)
        assert host.connect_ex((CID, 99)) == errno.EINPROGRESS
        sockets.gather(REQUEST)
        sockets.say(RESPONSE)
        host.settimeout(PATIENCE)
        host.sendall(b"hello")
        sockets.say(DATA, sockets.gather(DATA).upper())
        assert host.recv(100) == b"HELLO"


def test_an_address_that_another_guest_has_is_refused() -> None:
    with Sockets().driver, pytest.raises(BackendError, match="VSOCK_SET_GUEST_CID: another guest has this address"):
        Driver(Vhost, backend=f"vhost-vsock:{CID}")


def test_an_address_is_free_again_when_its_device_is_closed() -> None:
    for _ in range(2):
        sockets = Sockets()
        assert sockets.driver.status == READY
        sockets.driver.close()
