"""A macvtap: a tap that shares an interface of the host's (the kernel's drivers/net/macvtap.c).

Frames leave through the parent interface, with the card's own address and without a bridge. Each macvtap has its own
device node. Its number is in sysfs, and a mount of sysfs shows one network namespace only.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bellwire.linux import CLONE_NEWNS, MS_REC, MS_SLAVE, mount, unshare
from bellwire.network.interface import Settings, enter, make_macvtap, remove
from bellwire.network.link import LinkError
from bellwire.network.tap import TapLink, apart

SYSFS = "/sys"


class MacvtapLink(TapLink):
    """The macvtap ``name`` on the interface ``parent``. If the link creates it, it removes it when it is closed.

    The kernel delivers unicast frames for ``settings.address`` only, and multicast and broadcast frames.
    """

    def __init__(self, name: str, parent: str, pairs: int, settings: Settings) -> None:
        self._parent = parent
        self._namespace = settings.namespace
        self._made = False
        super().__init__(name, pairs, settings)

    def close(self) -> None:
        """Close the queues, and remove the macvtap if this link has made it. A second call does nothing."""
        super().close()
        if self._made:
            self._made = False
            apart(self._remove)

    def _remove(self) -> None:
        enter(self._namespace)
        remove(self.name)

    def _find(self, settings: Settings) -> str:
        self._made = make_macvtap(self.name, self._parent, settings.address)
        if settings.namespace:
            _alone()
            mount("sysfs", SYSFS)
        try:
            (entry,) = Path(SYSFS, "class/net", self.name, "macvtap").glob("tap*/dev")
        except ValueError:
            raise LinkError(
                f"interface {self.name} is no macvtap, or {SYSFS} shows another network namespace"
            ) from None
        major, minor = map(int, entry.read_text().split(":"))
        number = os.makedev(major, minor)
        node = Path("/dev", entry.parent.name)  # udev or devtmpfs has made it there
        if node.exists() and node.stat().st_rdev == number:
            return os.fspath(node)
        if not settings.namespace:
            _alone()
        mount("tmpfs", SYSFS)
        os.mknod(f"{SYSFS}/node", stat.S_IFCHR | 0o600, number)
        return f"{SYSFS}/node"


def _alone() -> None:
    """Give this thread a mount namespace of its own. It ends with the thread."""
    unshare(CLONE_NEWNS)
    mount(None, "/", MS_SLAVE | MS_REC)
