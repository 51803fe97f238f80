"""What a guest's commands see as their files: a minimal root of busybox, or the host's own root under a layer.

The host does it step by step with the agent's own tools, so each failure has a name.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bellwired.guest import agent
from bellwired.guest import initramfs as cpio
from bellwired.guest.errors import MachineError
from bellwired.guest.folders import OPTIONS, Offered
from bellwired.guest.kernel import VIRTIO, Kernel
from bellwired.guest.plan import HOST, KERNELS_OWN, Plan, Share

if TYPE_CHECKING:
    from bellwired.guest.machine import Finished

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NEW_ROOT, LAYERS, BASE = "/newroot", "/layers", "/base"
KEPT_VARIABLES = ("HOME", "LANG", "LC_ALL", "PATH", "TERM", "VIRTUAL_ENV")
NETWORK = """
ip link set lo up && ip link set eth0 up && ip address add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2 &&
mkdir -p {root}/etc && rm -f {root}/etc/resolv.conf && echo nameserver 10.0.2.3 >{root}/etc/resolv.conf
"""
"""The addresses of QEMU's user-mode network (QEMU, docs/system/devices/net.rst). The host's resolv.conf may be a
link to what the guest does not have."""
NAME = b"guest\n"
ALL_MESSAGES = b"7 4 1 7\n"
"""What the console prints once the guest is up: all but debug messages (proc(5), /proc/sys/kernel/printk)."""


class Guest(Protocol):
    """What this module needs of a machine."""

    plan: Plan

    def tool(self, words: Sequence[str], input: bytes = b"") -> int:
        """Run one of the agent's tools."""

    def switch_root(self, folder: str) -> int:
        """Make a folder the root."""

    def run(self, command: Sequence[str], *, folder: str) -> Finished:
        """Run a command."""


def shares(plan: Plan) -> list[Share]:
    """All shares of a machine: the host's root first, if the guest has it."""
    first = [Share(Path("/"), BASE)] if plan.root == HOST else []
    return [*first, *plan.shares]


def folder(plan: Plan) -> str:
    """Where commands start."""
    return plan.folder or ("/" if plan.root == HOST else "/root")


def environment(plan: Plan) -> dict[str, str]:
    """The variables of commands: with the host's root, some are the host's."""
    if plan.root == HOST:
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        return {"PATH": PATH, "HOME": "/root", **kept, **plan.environment}
    return {"PATH": PATH, "HOME": "/root", "TERM": os.environ.get("TERM", "linux"), **plan.environment}


def words(command: str | Sequence[str]) -> list[str]:
    """A command's words; a line is for the shell."""
    return ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)


def initramfs(plan: Plan) -> bytes:
    """The archive that the kernel boots with: the agent, its modules, and busybox for a minimal root."""
    modules = enumerate(first_modules(plan.kernel).values())
    files: dict[str, bytes | Path] = {"init": agent.PROGRAM, **plan.files}
    files |= {f"modules/{number:02}": module for number, module in modules}
    links: dict[str, str] = {}
    if plan.root != HOST or plan.network:
        if plan.busybox is None:
            raise MachineError("a minimal root, and a network, take a static busybox")
        files["bin/busybox"] = plan.busybox
        links |= {f"bin/{name}": "busybox" for name in applets(plan.busybox)}
    return cpio.archive(files, links)


def first_modules(kernel: Kernel) -> dict[str, bytes]:
    """What the agent loads before it can talk to the host: virtio, where it is no part of the kernel's image."""
    return kernel.load_order(name for name in VIRTIO if kernel.file(name))


def applets(busybox: Path) -> list[str]:
    """The commands that a busybox has."""
    try:
        done = subprocess.run([busybox, "--list"], stdin=subprocess.DEVNULL, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise MachineError(f"{busybox}: cannot be asked for its commands: {error}") from None
    return [name for name in done.stdout.decode().split() if name != "busybox"]


def prepare(guest: Guest, offered: Iterable[Offered]) -> None:
    """Load modules, mount folders, and make the root, in a guest that has just booted.

    Shares come last: what is written before is in no folder of the host's.
    """
    plan = guest.plan
    by_place = list(offered)
    needed = [
        *plan.modules,
        *(["virtio_net"] if plan.network else []),
        *(["overlay"] if any(not each.share.writable for each in by_place) else []),
    ]
    loaded = first_modules(plan.kernel)
    for name, module in plan.kernel.load_order(needed).items():
        if name in loaded:
            continue
        _must(guest.tool(["insmod"], module), f"the kernel's module {name} cannot be loaded")
    root = NEW_ROOT if plan.root == HOST else ""
    if root:
        base, *by_place = by_place
        _layered(guest, base, root)
        for place in KERNELS_OWN:  # /dev takes /dev/pts along
            _mount(guest, "", place, f"{root}{place}", "", "move")
    if plan.network:
        done = guest.run(["/bin/busybox", "sh", "-c", NETWORK.format(root=root)], folder="/")
        if done.status:
            raise MachineError(f"the guest has no network: {done.stderr.decode(errors='replace').strip()}")
    guest.tool(["write", f"{root}/proc/sys/kernel/hostname"], NAME)
    guest.tool(["write", f"{root}/proc/sys/kernel/printk"], ALL_MESSAGES)
    for each in by_place:
        if each.share.writable:
            _mount(guest, each.kind, each.tag, f"{root}{each.share.place}", OPTIONS[each.kind])
        else:
            _layered(guest, each, f"{root}{each.share.place}")
    if root:
        _must(guest.switch_root(root), "the host's root cannot become the guest's")


def _layered(guest: Guest, offered: Offered, place: str) -> None:
    """A read-only folder below a layer in the guest's memory."""
    own = f"{LAYERS}/{offered.tag}"
    _mount(guest, "tmpfs", "tmpfs", own, "mode=755")
    _mount(guest, offered.kind, offered.tag, f"{own}/below", OPTIONS[offered.kind], "ro")
    for name in ("above", "work"):
        _must(guest.tool(["folder", f"{own}/{name}"]), f"no folder {own}/{name}")
    options = f"lowerdir={own}/below,upperdir={own}/above,workdir={own}/work"
    _mount(guest, "overlay", "overlay", place, options)


def _mount(guest: Guest, kind: str, source: str, place: str, options: str, *flags: str) -> None:
    number = guest.tool(["mount", kind, source, place, options, *flags])
    _must(number, f"the guest cannot mount {kind or source} at {place}")


def _must(number: int, problem: str) -> None:
    if number:
        raise MachineError(f"{problem}: {os.strerror(number)}")
