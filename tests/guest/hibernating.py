"""A Linux that hibernates, and is switched on again.

It is no machine of ``bellwire boot``: that one ends with its QEMU, and so does the channel to its agent. A guest that
wakes up goes on in another QEMU, in the middle of its script. So this script speaks on a serial line, which is there
again, and needs nobody at its other end.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from attached import Served
from bellwired.guest.board import APPEND, CONSOLE, memory
from bellwired.guest.initramfs import archive
from bellwired.guest.toolbox import Toolbox
from qemu import attach, qemu

INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
export PATH=/bin
stty -F /dev/ttyS1 raw
for module in {modules}; do insmod /modules/$module.ko; done
sh /script </dev/null >/dev/ttyS1 2>&1
echo "status $?" >/dev/ttyS1
poweroff -f
"""


def run(
    tools: Toolbox,
    folder: Path,
    script: str,
    devices: Sequence[Served],
    *,
    modules: Sequence[str],
    arguments: Sequence[str],
    timeout: float,
) -> list[str]:
    """Run a script that hibernates once. What it has printed; an AssertionError if it fails or is not done in time."""
    loaded = tools.kernel.load_order(modules)
    files: dict[str, bytes | Path] = {f"modules/{name}.ko": module for name, module in loaded.items()}
    files |= {"init": INIT.format(modules=" ".join(loaded)).encode(), "script": script.encode()}
    files["bin/busybox"] = tools.busybox
    initramfs, console, output = (folder / name for name in ("initramfs", "kernel", "output"))
    initramfs.write_bytes(archive(files, {"bin/sh": "busybox"}))
    words = ["-accel", "tcg", *memory(256), "-no-reboot", "-kernel", str(tools.kernel.image), "-initrd", str(initramfs)]
    words += ["-append", f"{CONSOLE} {APPEND}"]
    for name, path in (("console", console), ("output", output)):
        words += ["-chardev", f"file,id={name},path={path},append=on", "-serial", f"chardev:{name}"]
    deadline = time.monotonic() + timeout
    for _ in range(2):
        with qemu(tools, folder, *words, *attach(devices), *arguments) as process:
            try:
                process.wait(deadline - time.monotonic())
            except subprocess.TimeoutExpired:
                raise AssertionError(f"not done after {timeout:.0f} s: {output.read_text()}") from None
    said = output.read_text().replace("\r\n", "\n")
    found = re.fullmatch(r"(.*)\nstatus 0\n", said, re.DOTALL)
    assert found, f"{said}\n{console.read_text(errors='replace')}"
    return found[1].splitlines()
