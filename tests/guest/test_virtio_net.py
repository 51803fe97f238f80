"""A stock Linux drives virtio-net on a real tap, in a network namespace of the test's own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socketserver
import threading
from collections.abc import Callable, Iterator

import pytest

import iperf
from attached import Device, Served
from bellwired.guest.toolbox import Toolbox
from linux import Outcome
from virtio.namespace import Namespace

pytestmark = pytest.mark.guest

RINGS = pytest.mark.parametrize("packed", ["no", "yes"], ids=["split", "packed"])
KINDS = pytest.mark.parametrize(
    ("packed", "offloads"),
    [
        pytest.param("no", "no", id="plain-split"),
        pytest.param("yes", "yes", id="offloads-packed"),
        pytest.param("yes", "no", id="plain-packed", marks=pytest.mark.long),
        pytest.param("no", "yes", id="offloads-split", marks=pytest.mark.long),
    ],
)
TAP, HOST, GUEST, MAC = "bwguest0", "10.98.0.1", "10.98.0.2", "52:54:00:12:34:56"
GIVES, TAKES = 8001, 8002
CONTENT = os.urandom(1 << 20) * 100

UP = f"""
ip link set eth0 up
ip addr add {GUEST}/24 dev eth0
n=0; until ping -c 1 -W 1 {HOST} >/dev/null; do n=$((n + 1)); [ $n -lt 20 ] || exit 9; done
"""


def giver(content: bytes) -> type[socketserver.BaseRequestHandler]:
    """Sends ``content``."""

    class Giver(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(content)

    return Giver


class Taker(socketserver.BaseRequestHandler):
    """Says what the sum of what it is sent is."""

    def handle(self) -> None:
        digest = hashlib.sha256()
        while data := self.request.recv(1 << 20):
            digest.update(data)
        self.request.sendall(digest.hexdigest().encode() + b"\n")


@contextlib.contextmanager
def listening(namespace: Namespace, port: int, handler: type[socketserver.BaseRequestHandler]) -> Iterator[None]:
    """Somebody who can be reached through the namespace's interfaces."""
    with namespace.inside(lambda: socketserver.ThreadingTCPServer(("0.0.0.0", port), handler)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.fixture
def card(serve: Callable[[Device], Served], namespace: Namespace) -> Callable[..., Served]:
    """Serve a card on a tap whose other side has an address."""

    def card(**options: object) -> Served:
        served = serve(Device("virtio-net", {"tap": TAP, "namespace": namespace.name, "mac": MAC} | options))
        namespace.address(TAP, HOST)
        return served

    return card


FILES = f"""{UP}
ping -c 20 -i 0.02 -s 1400 {HOST} | grep -c 'seq='
nc {HOST} {GIVES} >/file || exit 2
sha256sum </file
nc {HOST} {TAKES} </file || exit 3
cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu
cut -c 1-2,12-13 /sys/bus/virtio/devices/virtio0/features
"""


@KINDS
def test_a_hundred_megabytes_go_both_ways(
    linux: Callable[..., Outcome], card: Callable[..., Served], namespace: Namespace, packed: str, offloads: str
) -> None:
    served = card(packed=packed, offloads=offloads, mtu=1500)
    with listening(namespace, GIVES, giver(CONTENT)), listening(namespace, TAKES, Taker):
        outcome = linux(FILES, served, modules=["virtio_net"], mib=512, timeout=240)
    assert outcome.status == 0
    digest = hashlib.sha256(CONTENT).hexdigest()
    bits = "11" if offloads == "yes" else "00"
    assert outcome.output.splitlines() == ["20", f"{digest}  -", digest, MAC, "1500", 2 * bits]


@KINDS
def test_iperf3_both_ways(
    linux: Callable[..., Outcome],
    tools: Toolbox,
    card: Callable[..., Served],
    namespace: Namespace,
    packed: str,
    offloads: str,
) -> None:
    served = card(packed=packed, offloads=offloads)
    with iperf.server(tools, namespace.name):
        outcome = linux(UP + iperf.script(HOST), served, modules=["virtio_net"], programs=[iperf.PROGRAM], timeout=240)
    assert outcome.status == 0, outcome.output
    flows = iperf.flows(outcome.output)
    assert flows.keys() == iperf.WAYS.keys()
    assert all(flow.megabits > 1 for flow in flows.values()), flows


QUEUES = f"""{UP}
cat /sys/class/net/eth0/mtu
ping -c 3 -s 8900 {HOST} | grep -c 'seq='
iperf3 -c {HOST} -P 8 -t 2 >/dev/null || exit 7
iperf3 -c {HOST} -P 8 -t 2 -R >/dev/null || exit 8
awk '/virtio0-(in|out)put/ {{ print $NF, ($2 + $3 > 0) }}' /proc/interrupts
"""


def test_two_processors_use_two_pairs_of_queues_and_large_frames(
    linux: Callable[..., Outcome], tools: Toolbox, card: Callable[..., Served], namespace: Namespace
) -> None:
    served = card(pairs=2, mtu=9000)
    with iperf.server(tools, namespace.name):
        outcome = linux(
            QUEUES,
            served,
            modules=["virtio_net"],
            programs=[iperf.PROGRAM],
            cpus=2,
            timeout=240,
        )
    assert outcome.status == 0, outcome.output
    mtu, pings, *queues = outcome.output.splitlines()
    assert (mtu, pings) == ("9000", "3")
    assert queues == [f"virtio0-{way}.{number} 1" for number in (0, 1) for way in ("input", "output")]


OTHER_MAC = "52:54:00:65:43:21"
CONTROL = f"""{UP}
ip link set eth0 address {OTHER_MAC}
ip link set eth0 promisc on
ip link set eth0 promisc off
ip link add link eth0 name lan type vlan id 5 || exit 3
ip link set lan up
ping -c 2 {HOST} | grep -c 'seq='
cat /sys/class/net/eth0/address
dmesg | grep -ic 'virtio_net.*fail'
true
"""


@RINGS
def test_the_driver_changes_address_modes_and_vlans_and_complains_of_nothing(
    linux: Callable[..., Outcome], card: Callable[..., Served], packed: str
) -> None:
    outcome = linux(CONTROL, card(packed=packed), modules=["virtio_net", "8021q"], timeout=240)
    assert outcome.status == 0, outcome.output
    assert outcome.output.splitlines() == ["2", OTHER_MAC, "0"]
