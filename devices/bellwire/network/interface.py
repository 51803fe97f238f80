"""Network interfaces and namespaces, set up by rtnetlink (pyroute2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bellwire.network.link import LinkError


@dataclass(frozen=True)
class Settings:
    """What is to become of an interface; what is left empty stays as it is."""

    namespace: str = ""
    """A network namespace, by name (as ``ip netns`` knows it) or path."""
    bridge: str = ""
    """A bridge to join."""
    mtu: int = 0
    up: bool = True

    @property
    def any(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.bridge or self.mtu or self.up)


def enter(namespace: str) -> None:
    """Take this thread into a network namespace."""
    if namespace:
        from pyroute2 import netns  # here, since few devices need it and it is large

        try:
            netns.setns(namespace, flags=0)
        except OSError as error:
            raise LinkError(f"network namespace {namespace}: {error.strerror}") from error


def configure(name: str, settings: Settings) -> None:
    """Set an interface of this thread's network namespace up; a LinkError says what could not be done."""
    if not settings.any:
        return
    from pyroute2 import IPRoute, NetlinkError

    with IPRoute() as routes:
        index = _index(routes, name)
        wanted: dict[str, Any] = {}
        if settings.mtu:
            wanted["mtu"] = settings.mtu
        if settings.bridge:
            wanted["master"] = _index(routes, settings.bridge)
        if settings.up:
            wanted["state"] = "up"
        if all(_has(routes, index, key, value) for key, value in wanted.items()):
            return  # it was set up for us, and we may not be allowed to
        try:
            routes.link("set", index=index, **wanted)
        except NetlinkError as error:
            words = ", ".join(f"{key} {value}" for key, value in wanted.items())
            raise LinkError(f"interface {name}: cannot set {words}: {error}") from error


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
