"""The unpacked packages, and how to run what is in them."""

from __future__ import annotations

import functools
import lzma
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from debian import AptError

LIBRARIES = "usr/lib/x86_64-linux-gnu"
FOLDERS = (LIBRARIES, f"{LIBRARIES}/ceph", f"{LIBRARIES}/systemd")  # fio and varlinkctl are linked with those
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"
CANCEL = f"{LIBRARIES}/libgcc_s.so.1"  # glibc loads it when a thread is cancelled, as iperf3's are
QEMU = "usr/bin/qemu-system-x86_64"
FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
VIRTIOFSD = "usr/libexec/virtiofsd"
BUSYBOX = "usr/bin/busybox"
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
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
    def kernel(self) -> Path:
        """The Linux kernel's image."""
        (found,) = (self.root / "boot").glob("vmlinuz-*")
        return found

    @property
    def busybox(self) -> Path:
        """The guest's shell and tools, in one static program."""
        return self.root / BUSYBOX

    def modules(self, names: Iterable[str]) -> dict[str, bytes]:
        """Modules of the kernel by name, each after those that it needs."""
        loaded: dict[str, bytes] = {}
        for name in names:
            module = lzma.decompress(self._module(name).read_bytes())
            depends = _DEPENDS.search(module)
            loaded |= self.modules(depends[1].decode().split(",") if depends and depends[1] else [])
            loaded[name] = module
        return loaded

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
        """An AptError when something is not as it should be."""
        try:
            devices = subprocess.run(
                [*self.qemu, "-device", "help"], capture_output=True, text=True, check=False, env=self.qemu_environment
            )
            kernel, busybox = self.kernel, self.busybox
        except (OSError, ValueError) as error:
            raise AptError(f"the packages are not what was expected: {error}") from None
        if '"vfio-user-pci"' not in devices.stdout:
            raise AptError(f"QEMU has no vfio-user-pci (or does not run: {devices.stderr.strip()})")
        for path in (kernel, busybox):
            if not path.exists():
                raise AptError(f"no {path.name} in the packages")

    def describe(self) -> str:
        """One line for people."""
        return f"QEMU {self.qemu_version}, Linux {self.kernel.name.removeprefix('vmlinuz-')}: {self.folder}"

    def _loaded(self, path: str, *options: str) -> list[str]:
        library_path = ":".join(os.fspath(self.root / folder) for folder in FOLDERS)
        return [os.fspath(self.root / LOADER), "--library-path", library_path, *options, os.fspath(self.root / path)]

    def _module(self, name: str) -> Path:
        """Where it is, compressed by xz."""
        found = sorted((self.root / "usr/lib/modules").rglob(f"{name}.ko.xz"))
        if not found:
            raise LookupError(f"the kernel has no module {name} (it may be built in)")
        return found[0]
