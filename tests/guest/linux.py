"""A Linux guest that runs one shell script with our devices in its machine, and tells how that went."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from attached import Served
from bellwired.guest.board import memory
from bellwired.guest.initramfs import archive
from bellwired.guest.plan import Plugged
from bellwired.guest.toolbox import Toolbox
from qemu import attach, qemu

INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /tmp /run /mnt /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
export PATH=/usr/sbin:/usr/bin:/bin HOME=/root
cd /root
stty -F /dev/ttyS1 raw
for module in {modules}; do insmod /modules/$module.ko || echo "no module $module"; done
sh /script </dev/null >/dev/ttyS1 2>&1
printf '\n{mark}%d\n' $? >/dev/ttyS1
sync
{end} -f
"""
MARK = "status of the script: "
_STATUS = re.compile(rf"\n{MARK}(\d+)\n")


class Outcome(NamedTuple):
    """``status`` of the script (None when the guest ended before it did), what it printed, what the kernel printed."""

    status: int | None
    output: str
    console: str
    seconds: float


class Guest:
    """A guest in the making; its files are in ``folder``, and stay there for whoever wants to know what happened."""

    def __init__(self, tools: Toolbox, folder: Path) -> None:
        self._tools = tools
        self._folder = folder
        self._output = folder / "output"
        self._console = folder / "console"

    def run(
        self,
        script: str,
        devices: Sequence[Served | Plugged] = (),
        *,
        files: Mapping[str, bytes | Path] | None = None,
        programs: Sequence[str] = (),
        modules: Iterable[str] = (),
        arguments: Sequence[str] = (),
        board: Sequence[str] = (),
        kernel: str = "",
        power_ons: int = 1,
        reboots: bool = False,
        end: str = "poweroff",
        console: str = "ttyS0",
        mib: int = 256,
        accel: str = "tcg",
        shared: bool = True,
        timeout: float = 60.0,
    ) -> Outcome:
        """Boot, run ``script``, and power off. An AssertionError when that takes longer than ``timeout``.

        ``programs`` are paths in Debian's packages, ``modules`` names of the kernel's, ``arguments`` more of QEMU's
        (those in ``board`` come before the devices), ``kernel`` of the kernel's. It is switched on ``power_ons`` times.
        Without ``reboots``, to start again is an ``end``, too: "reboot" for a machine that cannot power off any more.
        The kernel's messages come back if ``console`` is ttyS0: it has only one console of that kind.
        """
        initramfs = self._folder / "initramfs"
        initramfs.write_bytes(self._initramfs(script, files or {}, programs, modules, end))
        words = ["-accel", accel, *memory(mib, shared=shared), *([] if reboots else ["-no-reboot"])]
        words += ["-kernel", str(self._tools.kernel.image), "-initrd", str(initramfs)]
        words += ["-append", f"console={console} loglevel=6 panic=-1 random.trust_cpu=on {kernel}"]
        for name, path in (("console", self._console), ("output", self._output)):
            words += ["-chardev", f"file,id={name},path={path},append=on", "-serial", f"chardev:{name}"]
        start = time.monotonic()
        for _ in range(power_ons):
            with qemu(self._tools, self._folder, *words, *board, *attach(devices), *arguments) as process:
                try:
                    process.wait(start + timeout - time.monotonic())
                except subprocess.TimeoutExpired:
                    raise AssertionError(f"the guest is not done after {timeout:.0f} s") from None
        seconds = time.monotonic() - start
        output, messages = self._read(self._output), self._read(self._console)
        found = _STATUS.search(output)
        if found is None:
            return Outcome(None, output, messages, seconds)
        return Outcome(int(found[1]), output[: found.start()], messages, seconds)

    def report(self) -> dict[str, str]:
        """What there is to know of a run that went wrong."""
        names = {"the guest's output": "output", "the guest's console": "console", "QEMU": "qemu"}
        return {title: self._read(self._folder / name) for title, name in names.items()}

    def _initramfs(
        self,
        script: str,
        files: Mapping[str, bytes | Path],
        programs: Sequence[str],
        modules: Iterable[str],
        end: str,
    ) -> bytes:
        loaded = self._tools.kernel.load_order(modules)
        content: dict[str, bytes | Path] = {
            "init": INIT.format(modules=" ".join(loaded), mark=MARK, end=end).encode(),
            "script": (_preferred(programs) + script).encode(),
            "bin/busybox": self._tools.busybox,
        }
        for name, module in loaded.items():
            content[f"modules/{name}.ko"] = module
        for program in programs:
            content |= self._tools.program(program)
        return archive({**content, **files}, {"bin/sh": "busybox"})

    @staticmethod
    def _read(path: Path) -> str:
        return path.read_text(errors="replace").replace("\r\n", "\n") if path.exists() else ""


def _preferred(programs: Iterable[str]) -> str:
    """Shell functions that prefer programs to what busybox has under the same name, which its shell does not."""
    named = ((Path(program).name, program) for program in programs)
    return "".join(f'{name}() {{ /{program} "$@"; }}\n' for name, program in named if name.isidentifier())
