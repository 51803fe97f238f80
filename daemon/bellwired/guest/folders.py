"""Folders of the host's in a guest: over virtiofs (a virtiofsd for each), or over QEMU's own 9p.

Nothing is left in a file system: each virtiofsd has a socket whose path is gone before it starts.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bellwired.guest.errors import MachineError
from bellwired.guest.plan import Plan, Share

VIRTIOFS, NINE_P = "virtiofs", "9p"
OPTIONS = {VIRTIOFS: "", NINE_P: "trans=virtio,version=9p2000.L,msize=512000,cache=loose"}
FIRST_SLOT, MOST = 0x10, 8  # of bus 0: below are the user's devices, and above are root ports


@dataclass(frozen=True)
class Offered:
    """A share as the guest can mount it: ``tag`` names it, ``kind`` is the type of its file system."""

    share: Share
    tag: str
    kind: str


def kind_for(plan: Plan) -> str:
    """virtiofs if there is a virtiofsd and the kernel may have that file system, else 9p."""
    lacks = plan.kernel.modules is not None and not plan.kernel.has("virtiofs")
    return NINE_P if not plan.qemu.virtiofsd or lacks else VIRTIOFS


def offer(plan: Plan, shares: Sequence[Share]) -> list[Offered]:
    """Name the shares for the guest. Raises a MachineError if there are more than the machine has places for."""
    if len(shares) > MOST:
        raise MachineError(f"{len(shares)} folders for the guest: the machine has places for {MOST}", "share one above")
    kind = kind_for(plan)
    return [Offered(share, f"share{number}", kind) for number, share in enumerate(shares)]


def nine_p_arguments(offered: Offered, slot: int) -> list[str]:
    """QEMU's arguments for a share over 9p."""
    readonly = "off" if offered.share.writable else "on"
    path = os.fspath(offered.share.folder).replace(",", ",,")
    words = ["-fsdev", f"local,id={offered.tag},path={path},security_model=none,readonly={readonly},multidevs=remap"]
    device = f"virtio-9p-pci,fsdev={offered.tag},mount_tag={offered.tag},bus=pcie.0,addr={slot:#x}"
    return [*words, "-device", device]


def virtiofs_arguments(offered: Offered, slot: int, fd: int) -> list[str]:
    """QEMU's arguments for a share over virtiofs. ``fd`` is connected to its virtiofsd."""
    words = ["-chardev", f"socket,id={offered.tag},fd={fd}"]
    device = f"vhost-user-fs-pci,chardev={offered.tag},tag={offered.tag},bus=pcie.0,addr={slot:#x}"
    return [*words, "-device", device]


def virtiofsd_words(plan: Plan, offered: Offered, fd: int) -> list[str]:
    """The command line of the virtiofsd that serves a share on the listening socket ``fd``."""
    words = [*plan.qemu.virtiofsd, "--shared-dir", os.fspath(offered.share.folder.absolute()), "--fd", str(fd)]
    words += [
        "--cache",
        "auto",
        "--sandbox",
        "none" if os.geteuid() else "chroot",
        "--no-announce-submounts",
        "--log-level",
        "error",
    ]
    return words if offered.share.writable else [*words, "--readonly"]


def pair() -> tuple[socket.socket, socket.socket]:
    """A listening socket, and one that is connected to it. The path between them is removed again."""
    listener, client = (socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="bellwire-") as folder:
        path = os.fspath(Path(folder) / "socket")
        try:
            listener.bind(path)
            listener.listen(1)
            client.connect(path)
        except OSError:
            listener.close()
            client.close()
            raise
    return listener, client
