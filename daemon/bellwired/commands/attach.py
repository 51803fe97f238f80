"""The QEMU command line that attaches a device, as it works on this machine."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from xml.sax.saxutils import quoteattr

from bellwire_vmm.emulation import emulates_kernels

PATIENT = 24 * 3600 * 1000  # ms: the guest's access waits while the user works in the debugger
OLDEST = "10.1.1"
WHY_TCG = (
    "It says tcg, since there is no hardware virtualisation here: KVM emulates a guest's kernel, and does not know all "
    "that Linux uses. With kvm, QEMU would stop in its boot, with a dump of registers."
)


def accelerators() -> list[str]:
    """QEMU's accelerators, the best first. QEMU takes the next one only if it cannot open /dev/kvm."""
    return ["tcg"] if emulates_kernels() else ["kvm", "tcg"]


def qemu_command(path: Path, accelerated_by: list[str], *, timeout: int = 0) -> str:
    """A QEMU command line with the device at ``path``. Append a disk and other devices to it.

    ``timeout``: ms that QEMU waits for an answer of the device; the default is its own 5000.
    """
    words = ["qemu-system-x86_64", *(word for each in accelerated_by for word in ("-accel", each))]
    words += ["-M", "q35", "-m", "1G"]
    words += ["-object", "memory-backend-memfd,id=mem,size=1G,share=on", "-machine", "memory-backend=mem"]
    words += ["-device", _device(path, timeout)]
    return shlex.join(words)


def libvirt_xml(path: Path) -> str:
    """What a domain of libvirt needs in its XML: shared guest memory, and the device by QEMU's own arguments."""
    return f"""\
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <!-- merge these two elements, and the attribute xmlns:qemu, into the domain's XML -->
  <memoryBacking>
    <source type='memfd'/>
    <access mode='shared'/>
  </memoryBacking>
  <qemu:commandline>
    <qemu:arg value='-device'/>
    <qemu:arg value={quoteattr(_device(path))}/>
  </qemu:commandline>
</domain>"""


def _device(path: Path, timeout: int = 0) -> str:
    """The argument of QEMU's -device."""
    device: dict[str, object] = {"driver": "vfio-user-pci", "socket": {"path": str(path.absolute()), "type": "unix"}}
    if timeout:
        device["x-msg-timeout"] = timeout
    return json.dumps(device, separators=(",", ":"))
