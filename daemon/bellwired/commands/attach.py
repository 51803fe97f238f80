"""The QEMU command line that attaches a device, as it works on this machine."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from bellwire_vmm.emulation import emulates_kernels

PATIENT = 24 * 3600 * 1000  # ms: for a guest whose access waits while somebody thinks in a debugger
OLDEST = "10.1.1"
WHY_TCG = (
    "It says tcg, since there is no hardware virtualisation here: KVM emulates a guest's kernel, and does not know all "
    "that Linux uses. With kvm, QEMU would stop in its boot, with a dump of registers."
)


def accelerators() -> list[str]:
    """What to have the guest run by, the best first: QEMU takes the next one only where /dev/kvm cannot be opened."""
    return ["tcg"] if emulates_kernels() else ["kvm", "tcg"]


def qemu_command(path: Path, accelerated_by: list[str], *, timeout: int = 0) -> str:
    """A QEMU command line with the device at ``path`` in it; put a disk and what else you need after it.

    ``timeout`` are the ms that QEMU waits for an answer of the device; unless given, its own 5000.
    """
    device: dict[str, object] = {"driver": "vfio-user-pci", "socket": {"path": str(path.absolute()), "type": "unix"}}
    if timeout:
        device["x-msg-timeout"] = timeout
    words = ["qemu-system-x86_64", *(word for each in accelerated_by for word in ("-accel", each))]
    words += ["-M", "q35", "-m", "1G"]
    words += ["-object", "memory-backend-memfd,id=mem,size=1G,share=on", "-machine", "memory-backend=mem"]
    words += ["-device", json.dumps(device, separators=(",", ":"))]
    return shlex.join(words)
