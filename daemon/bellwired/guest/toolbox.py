"""QEMU, a Linux kernel and programs, as unpacked packages of Debian, and how to run what is in them."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

from bellwired.guest.archive import ArchiveError
from bellwired.guest.kernel import Kernel

LIBRARIES = "usr/lib/x86_64-linux-gnu"
FOLDERS = (LIBRARIES, f"{LIBRARIES}/ceph", f"{LIBRARIES}/systemd")  # fio and varlinkctl are linked with those
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"
CANCEL = f"{LIBRARIES}/libgcc_s.so.1"  # glibc loads it when a thread is cancelled, as iperf3's are
QEMU = "usr/bin/qemu-system-x86_64"
FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
VIRTIOFSD = "usr/libexec/virtiofsd"
BUSYBOX = "usr/bin/busybox"
_NEEDED = re.compile(r"^\s*(\S+) => (/\S+)", re.MULTILINE)


class Toolbox:
    """What is in ``folder``; nothing of it needs the machine's own libraries."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"

    @property
    def qemu(self) -> list[str]:
        """QEMU's command line begins so: with the loader and libraries that it was built for."""
        return [*self._loaded(QEMU), *self.firmware]

    @property
    def firmware(self) -> list[str]:
        """Arguments that say where QEMU finds firmware."""
        return [word for path in FIRMWARE for word in ("-L", os.fspath(self.root / path))]

    @property
    def qemu_environment(self) -> dict[str, str]:
        """QEMU's parts that are loaded when they are needed."""
        return {**os.environ, "QEMU_MODULE_DIR": os.fspath(self.root / LIBRARIES / "qemu")}

    @property
    def virtiofsd(self) -> list[str]:
        """The command line of the server of a folder begins so."""
        return self._loaded(VIRTIOFSD)

    @functools.cached_property
    def kernel(self) -> Kernel:
        """The Linux kernel and its modules."""
        (image,) = (self.root / "boot").glob("vmlinuz-*")
        release = image.name.removeprefix("vmlinuz-")
        return Kernel(image, release, self.root / "usr/lib/modules" / release)

    @property
    def busybox(self) -> Path:
        """The guest's shell and tools, in one static program."""
        return self.root / BUSYBOX

    def command(self, path: str) -> list[str]:
        """The command line of a program of the packages, to run it here."""
        return self._loaded(path)

    def program(self, path: str) -> dict[str, Path]:
        """A program of the packages and the libraries that it needs: where in the guest, and where here."""
        listed = subprocess.run(
            self._loaded(path, "--list"), capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
        ).stdout
        files = {path: self.root / path, "lib64/ld-linux-x86-64.so.2": self.root / LOADER, CANCEL: self.root / CANCEL}
        for name, found in _NEEDED.findall(listed):
            files[f"{LIBRARIES}/{name}"] = Path(found)
        return files

    @functools.cached_property
    def qemu_version(self) -> str:
        """As ``11.1.3``."""
        line = subprocess.run([*self.qemu, "--version"], capture_output=True, text=True, check=True).stdout
        return line.removeprefix("QEMU emulator version ").split()[0]

    def check(self) -> None:
        """An ArchiveError when something is not as it should be."""
        try:
            devices = subprocess.run(
                [*self.qemu, "-device", "help"], capture_output=True, text=True, check=False, env=self.qemu_environment
            )
            kernel, busybox = self.kernel.image, self.busybox
        except (OSError, ValueError) as error:
            raise ArchiveError(f"the packages are not what was expected: {error}") from None
        if '"vfio-user-pci"' not in devices.stdout:
            raise ArchiveError(f"QEMU has no vfio-user-pci (or does not run: {devices.stderr.strip()})")
        for path in (kernel, busybox):
            if not path.exists():
                raise ArchiveError(f"no {path.name} in the packages")

    def describe(self) -> str:
        """One line for people."""
        return f"QEMU {self.qemu_version}, Linux {self.kernel.release}: {self.folder}"

    def _loaded(self, path: str, *options: str) -> list[str]:
        library_path = ":".join(os.fspath(self.root / folder) for folder in FOLDERS)
        return [os.fspath(self.root / LOADER), "--library-path", library_path, *options, os.fspath(self.root / path)]
