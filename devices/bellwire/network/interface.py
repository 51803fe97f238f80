"""Network interfaces and namespaces, set up by rtnetlink (pyroute2).

That library takes several times as long to load as a worker takes to start. So it is imported only where something is
to be set up: a worker that goes on with a client finds its interface as it shall be.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple

from bellwire.network.link import LinkError

SIOCGIFFLAGS, SIOCGIFMTU = 0x8913, 0x8921
IFF_UP = 1
_REQUEST = struct.Struct("16si20x")  # struct ifreq: name, flags or MTU
HIGHEST_VNI = (1 << 24) - 1
VXLAN_PORT = 4789
"""The port of RFC 7348 §5. The kernel's default is an older one."""


class Vxlan(NamedTuple):
    """A VXLAN tunnel to a network on another host (RFC 7348)."""

    vni: int
    remote: str
    """The IP address of the other host."""

    @classmethod
    def parse(cls, text: str) -> Vxlan:
        """Parse a text like ``42@192.0.2.7``: the network's number and the other host. Raises a LinkError."""
        number, _, remote = text.partition("@")
        try:
            tunnel = cls(int(number), str(ip_address(remote)))
        except ValueError:
            tunnel = cls(0, "")
        if not 1 <= tunnel.vni <= HIGHEST_VNI or ip_address(tunnel.remote).is_multicast:
            raise LinkError(f"vxlan {text!r}: NUMBER@ADDRESS expected, 1 to {HIGHEST_VNI} and another host's")
        return tunnel

    @property
    def interface(self) -> str:
        """The name of the tunnel's interface on this host."""
        return f"vxlan{self.vni}"


@dataclass(frozen=True)
class Settings:
    """Settings of an interface. An empty one leaves the interface as it is."""

    namespace: str = ""
    """A network namespace, by name (as ``ip netns`` knows it) or path."""
    bridge: str = ""
    """The bridge that the interface joins."""
    mtu: int = 0
    up: bool = True
    vxlan: Vxlan | None = None
    """A tunnel that joins the bridge too. Both are made if they are missing, and stay afterwards."""
    address: str = ""
    """The hardware address: six bytes in hexadecimal, separated by colons."""

    @property
    def any(self) -> bool:
        """Whether any setting is given."""
        return bool(self.bridge or self.mtu or self.up or self.address)


def is_set_up(name: str, settings: Settings) -> bool:
    """Whether an interface of this thread's network namespace is as ``settings`` say.

    False if two ioctls (netdevice(7)) cannot tell: they know of its state and its MTU alone.
    """
    if settings.namespace or settings.bridge or settings.vxlan or settings.address:
        return False
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            is_up = bool(_asked(sock, SIOCGIFFLAGS, name) & IFF_UP)
            mtu = _asked(sock, SIOCGIFMTU, name) if settings.mtu else 0
    except OSError:  # there is none yet, or this kernel has no IPv4
        return False
    return (is_up or not settings.up) and mtu == settings.mtu


def enter(namespace: str) -> None:
    """Move this thread into a network namespace, given by name or path. A LinkError if that fails."""
    if namespace:
        from pyroute2 import netns

        try:
            netns.setns(namespace, flags=0)
        except OSError as error:
            raise LinkError(f"network namespace {namespace}: {error.strerror}") from error


def configure(name: str, settings: Settings) -> None:
    """Apply ``settings`` to an interface of this thread's network namespace. Raises a LinkError."""
    if not settings.any or is_set_up(name, settings):
        return
    from pyroute2 import IPRoute, NetlinkError

    with IPRoute() as routes:
        index = _index(routes, name)
        if settings.vxlan:
            _join(routes, settings.bridge, settings.vxlan)
        wanted: dict[str, Any] = {}
        if settings.mtu:
            wanted["mtu"] = settings.mtu
        if settings.bridge:
            wanted["master"] = _index(routes, settings.bridge)
        if settings.address:
            wanted["address"] = settings.address
        if settings.up:
            wanted["state"] = "up"
        if all(_has(routes, index, key, value) for key, value in wanted.items()):
            return  # somebody has set it up already, and this process may lack the right to
        try:
            routes.link("set", index=index, **wanted)
        except NetlinkError as error:
            words = ", ".join(f"{key} {value}" for key, value in wanted.items())
            raise LinkError(f"interface {name}: cannot set {words}: {error}") from error


def make(routes: Any, name: str, kind: str, **options: Any) -> bool:
    """Make an interface. False if there is one of that name already."""
    from pyroute2 import NetlinkError

    if routes.link_lookup(ifname=name):
        return False
    try:
        routes.link("add", ifname=name, kind=kind, **options)
    except NetlinkError as error:
        if error.code == errno.EOPNOTSUPP:
            raise LinkError(f"interface {name}: this kernel has no {kind}: load its module, if there is one") from error
        raise LinkError(f"interface {name}: cannot make a {kind}: {error}") from error
    return True


def make_macvtap(name: str, parent: str, address: str) -> bool:
    """Make a macvtap on ``parent``, in mode ``bridge``: those of one parent reach each other. False if it exists."""
    from pyroute2 import IPRoute

    with IPRoute() as routes:
        above = _index(routes, parent)
        return make(routes, name, "macvtap", link=above, macvtap_mode="bridge", address=address)


def remove(name: str) -> None:
    """Remove an interface from this thread's network namespace, if it exists."""
    from pyroute2 import IPRoute

    with IPRoute() as routes:
        for index in routes.link_lookup(ifname=name):
            routes.link("del", index=index)


def _join(routes: Any, bridge: str, tunnel: Vxlan) -> None:
    """Make the tunnel and the bridge if they are missing, join them, and bring both up."""
    make(routes, bridge, "bridge", state="up")
    master = _index(routes, bridge)
    peer = "vxlan_group6" if ":" in tunnel.remote else "vxlan_group"
    options = {"vxlan_id": tunnel.vni, "vxlan_port": VXLAN_PORT, peer: tunnel.remote}
    if make(routes, tunnel.interface, "vxlan", **options):
        routes.link("set", index=_index(routes, tunnel.interface), master=master, state="up")


def _index(routes: Any, name: str) -> int:
    found = routes.link_lookup(ifname=name)
    if not found:
        raise LinkError(f"there is no interface {name} in this network namespace")
    index: int = found[0]
    return index


def _has(routes: Any, index: int, key: str, value: object) -> bool:
    (link,) = routes.get_links(index)
    found = link.get("state") if key == "state" else link.get(key)
    return bool(found == value)


def _asked(sock: socket.socket, request: int, name: str) -> int:
    _, value = _REQUEST.unpack(fcntl.ioctl(sock, request, _REQUEST.pack(name.encode(), 0)))
    return int(value)
