"""``bellwire boot --vmm own``: Linux in our own VMM, with a shell on its serial console.

Our VMM has no channel for commands and no folders of the host's. So the guest has a minimal root, and a shell.
"""

from __future__ import annotations

import argparse
import os
import shlex
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bellwire_vmm.emulation import emulates_kernels
from bellwired.commands import vmm, vmm_linux
from bellwired.errors import CommandError
from bellwired.guest.initramfs import archive
from bellwired.guest.kernel import Kernel
from bellwired.guest.plan import MIB, Plugged
from bellwired.guest.roots import applets

OWN, QEMU = "own", "qemu"
HINT = "without --vmm own it works: QEMU then runs the guest"
REFUSED = ("words", "shares", "network", "gdb", "snapshot", "qemu", "root_port")
"""Arguments for what our VMM does not have."""
INIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
export PATH=/bin HOME=/root
cd /root
{insert}
setsid cttyhack sh
poweroff -f
"""


def check(arguments: argparse.Namespace) -> None:
    """Raise a CommandError if our VMM cannot do this, or cannot run Linux on this machine."""
    for name in REFUSED:
        if getattr(arguments, name):
            what = "a COMMAND" if name == "words" else f"--{name.removesuffix('s').replace('_', '-')}"
            raise CommandError(f"--vmm own has a shell on the serial console, and nothing for {what}", HINT)
    emulates = emulates_kernels()
    if emulates is not False:
        why = "KVM only emulates a guest's kernel here" if emulates else "KVM cannot be used here"
        raise CommandError(f"--vmm own cannot run Linux: {why}", HINT)


def boot(
    arguments: argparse.Namespace,
    kernel: Kernel,
    busybox: Path,
    modules: Iterable[Sequence[str]],
    devices: Sequence[Plugged],
) -> int:
    """Boot, with the terminal as the serial console. 0 when the guest has powered off, 3 after a panic."""
    with tempfile.TemporaryFile() as file:
        file.write(initramfs(kernel, busybox, modules))
        file.flush()
        return vmm_linux.boot(words(arguments, kernel, devices, Path(f"/proc/self/fd/{file.fileno()}")), vmm.plug)


def words(
    arguments: argparse.Namespace, kernel: Kernel, devices: Iterable[Plugged], initrd: Path
) -> argparse.Namespace:
    """What ``bellwire vmm --kernel`` takes."""
    return argparse.Namespace(
        kernel=kernel.image,
        initrd=initrd,
        append=arguments.append,
        devices=[device.socket for device in devices],
        memory=arguments.memory * MIB,
        cpus=arguments.cpus,
        console=arguments.console,
        timeout=arguments.timeout,
        no_reboot=True,
        **dict.fromkeys(("save", "migrate_to", "at", "when")),
    )


def initramfs(kernel: Kernel, busybox: Path, modules: Iterable[Sequence[str]]) -> bytes:
    """busybox, the modules, and a script that loads these and starts a shell."""
    files: dict[str, bytes | Path] = {"bin/busybox": busybox}
    insert: list[str] = []
    for name, *parameters in modules:
        own = "/" in name or name.endswith(".ko")
        found: Mapping[str, bytes] = {Path(name).stem: Path(name).read_bytes()} if own else kernel.load_order([name])
        for each, content in found.items():
            files[f"modules/{each}.ko"] = content
            given = parameters if each.replace("-", "_") == Path(name).stem.replace("-", "_") else []
            insert.append(shlex.join(["insmod", f"/modules/{os.fspath(each)}.ko", *given]))
    files["init"] = INIT.format(insert="\n".join(insert)).encode()
    folders = {f"{name}/.here": b"" for name in ("proc", "sys", "dev", "root", "tmp")}
    return archive({**files, **folders}, {f"bin/{name}": "busybox" for name in applets(busybox)})
