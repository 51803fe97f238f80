"""The QEMU command line that attaches a device, as it works on this machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

from bellwire_vmm.emulation import emulates_kernels

PATIENT = 24 * 3600 * 1000  # ms: the guest's access waits while the user works in the debugger
OLDEST = "10.1.1"
SLOTS, FUNCTIONS = 32, 8
SLOT = 0x10
"""A slot of QEMU's first bus that it leaves empty by itself."""
WHY_TCG = (
    "It says tcg, since there is no hardware virtualisation here: KVM emulates a guest's kernel, and does not know all "
    "that Linux uses. With kvm, QEMU would stop in its boot, with a dump of registers."
)


def accelerators() -> list[str]:
    """QEMU's accelerators, the best first. QEMU takes the next one only if it cannot open /dev/kvm."""
    return ["tcg"] if emulates_kernels() else ["kvm", "tcg"]


def qemu_command(
    paths: Path | Sequence[Path], accelerated_by: list[str], *, timeout: int = 0, slot: int | None = None
) -> str:
    """A QEMU command line with the devices at ``paths``. Append a disk and other devices to it.

    ``timeout``: ms that QEMU waits for an answer of a device; the default is its own 5000. With ``slot`` the devices
    are the functions of this slot, from 0 on.
    """
    words = ["qemu-system-x86_64", *(word for each in accelerated_by for word in ("-accel", each))]
    words += ["-M", "q35", "-m", "1G"]
    words += ["-object", "memory-backend-memfd,id=mem,size=1G,share=on", "-machine", "memory-backend=mem"]
    words += [word for device in _devices(paths, timeout, slot) for word in ("-device", device)]
    return shlex.join(words)


def libvirt_xml(paths: Path | Sequence[Path], *, slot: int | None = None) -> str:
    """What a domain of libvirt needs in its XML: shared guest memory, and the devices by QEMU's own arguments."""
    devices = "\n".join(
        f"    <qemu:arg value='-device'/>\n    <qemu:arg value={quoteattr(device)}/>"
        for device in _devices(paths, 0, slot)
    )
    return f"""\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <!-- merge these two elements, and the attribute xmlns:qemu, into the domain's XML -->
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <qemu:commandline>
{devices}
  </qemu:commandline>
</domain>"""


def _devices(paths: Path | Sequence[Path], timeout: int, slot: int | None) -> Iterator[str]:
    for number, path in enumerate([paths] if isinstance(paths, Path) else paths):
        yield _device(path, timeout, None if slot is None else (slot, number))


def _device(path: Path, timeout: int, place: tuple[int, int] | None) -> str:
    """The argument of QEMU's -device. ``place`` is a slot, and the number of a function in it."""
    device: dict[str, object] = {"driver": "vfio-user-pci", "socket": {"path": str(path.absolute()), "type": "unix"}}
    if place is not None:
        device |= {"addr": f"{place[0]:x}.{place[1]}", "multifunction": True}
    if timeout:
        device["x-msg-timeout"] = timeout
    return json.dumps(device, separators=(",", ":"))
