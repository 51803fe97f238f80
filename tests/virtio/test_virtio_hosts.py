"""virtio-net across hosts: VXLAN between two network namespaces of the tests' own, and macvtaps on a real interface."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bellwire import OptionError
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.network import LinkError, MacvtapLink, TapLink
from bellwire.network.interface import Settings, Vxlan, make
from bellwire.testing import Guest
from virtio.card import ALL, PATIENCE, Card
from virtio.namespace import Namespace, own_namespace
from virtio.stack import ethernet

WIRE = "bwwire0"
HERE, THERE = "192.0.2.1", "192.0.2.2"
MACS = "52:54:00:00:00:01", "52:54:00:00:00:02"
EXPERIMENTAL = 0x88B5  # an EtherType of nobody's (IEEE 802 §9.2.4)
Make = Callable[..., Card]


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Namespace, Namespace]]:
    """Two of them, and a cable between."""
    with own_namespace("here") as here, own_namespace("there") as there:

        def plug(routes: Any) -> None:
            peer = {"ifname": WIRE, "net_ns_fd": there.name}
            routes.link("add", ifname=WIRE, kind="veth", peer=peer)

        here.routes(plug)
        for namespace, address in ((here, HERE), (there, THERE)):
            namespace.address(WIRE, address)
            namespace.routes(lambda r: r.link("set", index=r.link_lookup(ifname=WIRE)[0], state="up"))
        yield here, there


@pytest.fixture
def card() -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def card(**options: Any) -> Card:
            made = Card((), ALL, buffers=16, **options)
            stack.callback(made.close)
            return made

        yield card


def goes(sender: Card, receiver: Card, to: str, origin: str) -> None:
    """A frame arrives; the kernels between have some of their own on the way."""
    payload = os.urandom(100)
    addresses = [bytes.fromhex(mac.replace(":", "")) for mac in (to, origin)]
    frame = ethernet(addresses[0], addresses[1], EXPERIMENTAL, payload)
    sender.send(frame)
    while frame not in [packet.frame for packet in receiver.await_packets()]:
        pass


def test_cards_of_two_hosts_reach_one_another_through_a_tunnel(hosts: tuple[Namespace, Namespace], card: Make) -> None:
    first, second = (
        card(tap="bwt0", bridge="bwbr0", vxlan=f"42@{other}", namespace=host.name, mac=mac, mtu=1450)
        for host, other, mac in zip(hosts, (THERE, HERE), MACS, strict=True)
    )
    goes(first, second, "ff:ff:ff:ff:ff:ff", MACS[0])
    goes(first, second, MACS[1], MACS[0])
    goes(second, first, MACS[0], MACS[1])


def test_a_tunnel_is_on_the_registered_port_and_stays_for_other_cards(hosts: tuple[Namespace, Namespace]) -> None:
    here, _ = hosts
    settings = Settings(here.name, bridge="bwbr1", vxlan=Vxlan(43, THERE))
    for _ in range(2):
        with contextlib.closing(TapLink("bwt1", 1, settings)):
            assert here.link("bwt1").get("master") == here.link("bwbr1")["index"]
        assert not here.exists("bwt1")
        tunnel = here.link("vxlan43")
        data = tunnel.get("linkinfo").get("data")
        assert (data.get("vxlan_id"), data.get("vxlan_group"), data.get("vxlan_port")) == (43, THERE, 4789)
        assert tunnel.get("master") == here.link("bwbr1")["index"]
        assert tunnel.get("state") == "up"


@pytest.mark.parametrize("text", ["", "42", "42@", "@192.0.2.1", "0@192.0.2.1", "16777216@192.0.2.1", "1@239.0.0.1"])
def test_a_tunnel_to_nowhere_is_refused(text: str) -> None:
    with pytest.raises(LinkError, match="NUMBER@ADDRESS"):
        Vxlan.parse(text)


def test_a_tunnel_may_go_by_ipv6() -> None:
    assert Vxlan.parse("7@2001:db8::1") == (7, "2001:db8::1")


def test_cards_share_an_interface_of_the_hosts(hosts: tuple[Namespace, Namespace], card: Make) -> None:
    here, there = hosts
    cards = [
        card(tap=f"bwm{number}", macvtap=WIRE, namespace=here.name, mac=mac, pairs=pairs, memory=32 << 20)
        for number, (mac, pairs) in enumerate(zip(MACS, (1, 2), strict=True))
    ]
    assert here.link("bwm0").get("address") == MACS[0]
    goes(cards[0], cards[1], MACS[1], MACS[0])
    with there.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EXPERIMENTAL))) as far:
        far.settimeout(PATIENCE)
        there.inside(lambda: far.bind((WIRE, EXPERIMENTAL)))
        frame = ethernet(b"\xff" * 6, bytes.fromhex("525400000001"), EXPERIMENTAL, b"out" * 30)
        cards[0].send(frame)
        assert far.recv(2000) == frame
        frame = ethernet(bytes.fromhex("525400000001"), b"\x02" * 6, EXPERIMENTAL, b"in" * 30)
        far.send(frame)
        while frame not in [packet.frame for packet in cards[0].await_packets()]:
            pass


def test_a_macvtap_goes_with_who_made_it(hosts: tuple[Namespace, Namespace], open_fds: set[int]) -> None:
    here, _ = hosts
    settings = Settings(here.name, address=MACS[0], mtu=1400)
    with contextlib.closing(MacvtapLink("bwm2", WIRE, 1, settings)):
        link = here.link("bwm2")
        assert (link.get("mtu"), link.get("state"), link.get("address")) == (1400, "up", MACS[0])
        with contextlib.closing(MacvtapLink("bwm2", WIRE, 1, replace(settings, address=MACS[1]))):
            assert here.link("bwm2").get("address") == MACS[1]
        assert here.exists("bwm2")
    assert not here.exists("bwm2")


def test_mounts_of_others_stay_as_they_were(hosts: tuple[Namespace, Namespace]) -> None:
    mounts = Path("/proc/self/mountinfo")
    before = mounts.read_text()
    with contextlib.closing(MacvtapLink("bwm3", WIRE, 1, Settings(hosts[0].name, address=MACS[0]))):
        assert mounts.read_text() == before


@pytest.mark.parametrize(
    ("name", "parent", "message"),
    [("bwm4", "bwnone", "no interface bwnone"), (WIRE, WIRE, "is no macvtap"), ("bwm4", "lo", "cannot make a macvtap")],
)
def test_what_cannot_be_shared_is_told(
    hosts: tuple[Namespace, Namespace], name: str, parent: str, message: str
) -> None:
    here, _ = hosts
    with pytest.raises(LinkError, match=message):
        MacvtapLink(name, parent, 1, Settings(here.name, address=MACS[0]))
    assert not here.exists("bwm4")
    assert here.exists(WIRE)


def test_a_kind_of_interface_that_the_kernel_lacks_is_told(hosts: tuple[Namespace, Namespace]) -> None:
    with pytest.raises(LinkError, match="this kernel has no bellwire"):
        hosts[0].routes(lambda routes: make(routes, "bwx0", "bellwire"))


@pytest.mark.parametrize(
    "options",
    [
        {"macvtap": "eth0", "dgram": "/nowhere"},
        {"tap": "bwm5", "macvtap": "eth0", "bridge": "br0"},
        {"tap": "bwm5", "vxlan": "42@192.0.2.1"},
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="needs"), Guest(VirtioNet, **options):
        pass
