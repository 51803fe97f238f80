"""A macvtap: a tap that shares an interface of the host's (the kernel's drivers/net/macvtap.c).

Frames leave by the interface below under an address of the card's own, with no bridge between. Each macvtap has a
device node of its own, which sysfs tells of, and sysfs tells of one network namespace only.
"""

from __future__ import annotations

import ctypes
import os
import stat
from pathlib import Path

from bellwire.network.interface import Settings, enter, make_macvtap, remove
from bellwire.network.link import LinkError
from bellwire.network.tap import TapLink, apart

SYSFS = "/sys"
CLONE_NEWNS = 0x0002_0000
MS_SLAVE, MS_REC = 1 << 19, 1 << 14

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p]
_libc.unshare.argtypes = [ctypes.c_int]


class MacvtapLink(TapLink):
    """``name`` on top of ``parent``, created where there is no such macvtap, and gone when we are if we made it.

    The kernel passes on what is for ``settings.address`` only, and what is for many.
    """

    def __init__(self, name: str, parent: str, pairs: int, settings: Settings) -> None:
        self._parent = parent
        self._namespace = settings.namespace
        self._made = False
        super().__init__(name, pairs, settings)

    def close(self) -> None:
        """Close the queues, and take away what we have made; a second call does nothing."""
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
            _mount("sysfs")
        try:
            (entry,) = Path(SYSFS, "class/net", self.name, "macvtap").glob("tap*/dev")
        except ValueError:
            raise LinkError(
                f"interface {self.name} is no macvtap, or {SYSFS} shows another network namespace"
            ) from None
        major, minor = map(int, entry.read_text().split(":"))
        number = os.makedev(major, minor)
        node = Path("/dev", entry.parent.name)  # where udev, or a devtmpfs, has put it
        if node.exists() and node.stat().st_rdev == number:
            return os.fspath(node)
        if not settings.namespace:
            _alone()
        _mount("tmpfs")
        os.mknod(f"{SYSFS}/node", stat.S_IFCHR | 0o600, number)
        return f"{SYSFS}/node"


def _alone() -> None:
    """Give this thread a mount namespace of its own, which ends with it."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _check(_libc.mount(b"none", b"/", None, MS_SLAVE | MS_REC, None), "mount")


def _mount(kind: str) -> None:
    """Mount something over what this thread sees at :data:`SYSFS`."""
    _check(_libc.mount(b"none", SYSFS.encode(), kind.encode(), 0, None), f"mount {kind}")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)} ({what})")
