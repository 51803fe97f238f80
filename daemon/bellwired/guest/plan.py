"""What a guest is to be: its kernel, devices, folders and size, and the QEMU that runs it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bellwired.guest.console import Listener
from bellwired.guest.errors import MachineError
from bellwired.guest.kernel import Kernel
from bellwired.guest.qemus import Qemu

HOST, MINIMAL = "host", "minimal"
BOOT_TIME = 300.0  # seconds, for a kernel that checks itself, in a machine that is emulated on a busy host
MIB = 1 << 20
ID = "device"
KERNELS_OWN = ("/dev", "/proc", "/sys", "/run")
"""What is of the guest's kernel in each root."""


def guests_own(place: Path) -> bool:
    """Whether a guest must have a folder of its own there, and none of the host's."""
    resolved = place.resolve()
    return str(resolved) in ("/", *KERNELS_OWN) or any(resolved.is_relative_to(each) for each in ("/proc", "/sys"))


@dataclass(frozen=True)
class Plugged:
    """A device that is served at ``socket``, and QEMU's properties of it. ``id`` names it for QEMU."""

    socket: Path
    id: str = ""
    properties: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """QEMU's device, as ``-device`` and ``device_add`` take it."""
        socket = {"path": os.fspath(self.socket.absolute()), "type": "unix"}
        named = {"id": self.id} if self.id else {}
        return {"driver": "vfio-user-pci", **named, "socket": socket, **self.properties}

    @property
    def argument(self) -> str:
        """QEMU's ``-device`` for it."""
        return json.dumps(self.arguments(), separators=(",", ":"))


@dataclass(frozen=True)
class Share:
    """A folder of the host's that the guest sees at ``place``.

    What is not ``writable`` is read-only, with a layer above it that lasts as long as the guest: it takes what the
    guest writes. Raises a MachineError for a place that is the guest's own.
    """

    folder: Path
    place: str
    writable: bool = False

    def __post_init__(self) -> None:
        if guests_own(Path(self.place)):
            raise MachineError(
                f"{self.folder} cannot be shared at {self.place}, which is the guest's own",
                f"share folders that are none of /, {', '.join(KERNELS_OWN)}, and not below /proc or /sys",
            )


@dataclass(frozen=True)
class Plan:
    """All that a machine is made from."""

    kernel: Kernel
    qemu: Qemu
    devices: Sequence[Plugged] = ()
    root: str = MINIMAL
    """HOST: the host's own files, read-only under a layer of the guest's. MINIMAL: busybox."""
    busybox: Path | None = None
    """A static busybox: needed for a minimal root."""
    shares: Sequence[Share] = ()
    modules: Sequence[str] = ()
    """Names of the kernel's own modules, to be loaded at boot with those that they need."""
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    """More files for the initramfs, by their path without a leading slash."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of every command, over the usual ones."""
    folder: str = ""
    """Where commands start. Default: /root with a minimal root, else /."""
    append: str = ""
    """More of the kernel's command line."""
    cpus: int = 1
    memory: int = 512 * MIB
    network: bool = False
    """A network card behind QEMU's user-mode network."""
    gdb: Path | None = None
    """The socket to make, on which QEMU's stub for debuggers listens."""
    ports: int = 1
    """Root ports for devices that are plugged in while the guest runs."""
    board: Sequence[str] = ()
    """Arguments for QEMU that come before the devices: an IOMMU, or a bus that they are on."""
    arguments: Sequence[str] = ()
    """More arguments for QEMU, behind the devices. ``-serial`` adds a line: ttyS1 in the guest."""
    shared: bool = True
    """Whether devices can map the guest's memory. Else they read and write it by message."""
    listeners: tuple[Listener, ...] = ()
    """They hear what the guest's console prints."""
    boot_time: float = BOOT_TIME
    """Seconds until the guest takes commands, at most."""
