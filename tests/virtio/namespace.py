"""A network namespace of a test's own, and sockets in it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

Result = TypeVar("Result")
PATIENCE = 30.0


class Namespace:
    """By its name, as ``ip netns`` knows it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def inside(self, work: Callable[[], Result]) -> Result:
        """Do something in it: on a thread, which leaves it by ending."""
        from pyroute2 import netns

        def enter_and_work() -> Result:
            netns.setns(self.name, flags=0)
            return work()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(enter_and_work).result()

    def routes(self, work: Callable[[Any], Result]) -> Result:
        """Do something with rtnetlink in it."""
        from pyroute2 import IPRoute

        def with_routes() -> Result:
            with IPRoute() as routes:
                return work(routes)

        return self.inside(with_routes)

    def address(self, interface: str, address: str, length: int = 24) -> None:
        """Give an interface an address, once there is such an interface."""
        deadline = time.monotonic() + PATIENCE
        while not self.exists(interface):
            assert time.monotonic() < deadline, f"no interface {interface}"
        self.routes(
            lambda r: r.addr("add", index=r.link_lookup(ifname=interface)[0], address=address, prefixlen=length)
        )

    def link(self, interface: str) -> Any:
        """What rtnetlink says of an interface."""
        return self.routes(lambda r: r.get_links(r.link_lookup(ifname=interface)[0])[0])

    def exists(self, interface: str) -> bool:
        """Whether there is such an interface."""
        return bool(self.routes(lambda r: r.link_lookup(ifname=interface)))


@contextlib.contextmanager
def own_namespace(suffix: str = "") -> Iterator[Namespace]:
    """One that is gone afterwards; skips where none can be made."""
    from pyroute2 import netns

    name = f"bellwire-test-{os.getpid()}{suffix}"
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("no /dev/net/tun on this machine")
    if os.geteuid() != 0:
        pytest.skip("no network namespace can be made here: not root")  # netns.create leaves a socket open then
    try:
        netns.create(name)
    except (OSError, PermissionError) as error:
        pytest.skip(f"no network namespace can be made here: {error}")
    try:
        yield Namespace(name)
    finally:
        netns.remove(name)
