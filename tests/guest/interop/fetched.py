"""What only these tests fetch from Debian's archive: firmware, and kernels of other releases. Nothing is installed.

Each is a folder of the cache, which is fetched once; apt checks what Debian has signed. An ArchiveError says what
stands in the way.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from bellwired.guest.archive import Apt, run, unpack
from bellwired.guest.caches import caches, making, only_one
from bellwired.guest.kernel import Kernel
from bellwired.guest.toolbox import Toolbox

FIRMWARE = ("ovmf", "u-boot-qemu")
OVMF, OVMF_VARIABLES = "usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"
U_BOOT = "usr/lib/u-boot/qemu-x86_64/u-boot.rom"
VERSIONS = "versions"
KERNEL = "linux-image-cloud-amd64"
_KERNEL_PART = re.compile(r"^linux-(?:base|binary|image|modules)-\d\S*$", re.MULTILINE)


class Firmware:
    """The unpacked packages."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self._versions = (folder / VERSIONS).read_text()

    def version(self, package: str) -> str:
        """As Debian has it."""
        (found,) = re.findall(rf"^{package}_([^_]+)_", self._versions, re.MULTILINE)
        return str(found).replace("%3a", ":")

    def ovmf(self, folder: Path) -> list[str]:
        """QEMU's arguments for OVMF, with variables of its own in ``folder``."""
        variables = folder / "variables.fd"
        shutil.copyfile(self.root / OVMF_VARIABLES, variables)
        flash = [f"readonly=on,file={self.root / OVMF}", f"file={variables}"]
        return [word for part in flash for word in ("-drive", f"if=pflash,format=raw,{part}")]

    @property
    def u_boot(self) -> Path:
        """What QEMU takes as a BIOS."""
        return self.root / U_BOOT


class OtherKernel(Toolbox):
    """The guest tools with another kernel."""

    def __init__(self, tools: Toolbox, folder: Path) -> None:
        super().__init__(tools.folder)
        self._root = folder / "root"

    @property
    def kernel(self) -> Kernel:
        """Of the other release."""
        (modules,) = self._root.glob("**/lib/modules/*")
        image = self._root / f"boot/vmlinuz-{modules.name}"
        return Kernel(image if image.exists() else modules / "vmlinuz", modules.name, modules)


def fetch_firmware(suite: str = "trixie") -> Firmware:
    """OVMF and U-Boot."""
    return Firmware(_fetch(f"firmware-{suite}", suite, lambda _: FIRMWARE))


def fetch_kernel(tools: Toolbox, suite: str) -> OtherKernel:
    """The newest kernel for virtual machines of ``suite``: its image and its modules."""

    def packages(apt: Apt) -> Sequence[str]:
        words = ("--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces")
        return _KERNEL_PART.findall(run("apt-cache", *apt.options, "depends", *words, KERNEL))

    return OtherKernel(tools, _fetch(f"kernel-{suite}", suite, packages))


def _fetch(name: str, suite: str, packages: Callable[[Apt], Sequence[str]]) -> Path:
    folder = caches() / "interop" / name
    if not folder.exists():
        with only_one(folder.parent):
            if not folder.exists():
                with making(folder) as made:
                    security = "" if suite.endswith("-backports") else f"{suite}-security"
                    apt = Apt(made / "apt", (suite,), security=security)
                    apt.update()
                    fetched = apt.download_named(packages(apt))
                    unpack(fetched, made / "root")
                    (made / VERSIONS).write_text("".join(f"{package.name}\n" for package in fetched))
                    for package in fetched:
                        package.unlink()
    return folder
