"""Kernel modules for the guest, built by this machine's compiler with the headers of the guest's kernel.

The headers come from Debian, into the cache; nothing is installed. The programs among them were built for the guest's
release, so they run with its libraries.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from bellwired.guest.archive import Apt, ArchiveError, unpack
from bellwired.guest.caches import caches, only_one
from bellwired.guest.fetch import BACKPORTS, SUITE
from bellwired.guest.toolbox import LIBRARIES, LOADER, Toolbox

LAYOUT = 1  # raise it when what is made of the packages changes
LIBELF = ("libelf1t64", "zlib1g", "libzstd1", "libc6")  # what objtool is linked with
PROGRAMS = {"scripts/basic/fixdep": "", "scripts/mod/modpost": ".real-lsb-64", "tools/objtool/objtool": ".real-x86"}
"""The programs of kbuild, and what Debian puts behind the name of the one for x86-64."""
NEWER = ("-fmin-function-alignment=16",)
"""Flags of the kernel's own compiler that an older one may lack; modules do well without them."""


def build(tools: Toolbox, folder: Path) -> Path:
    """Run the Makefile in ``folder`` for the guest's kernel; the module. An AssertionError has what make has said."""
    headers = provide(tools)
    words = ["make", "-C", os.fspath(folder), f"KDIR={headers / 'build'}", f"CC={headers / 'cc'}"]
    words.append("CONFIG_DEBUG_INFO_BTF_MODULES=")  # that would take pahole
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning:" not in done.stderr.replace("warning: the compiler differs", ""), done.stderr
    (module,) = folder.glob("*.ko")
    return module


def provide(tools: Toolbox) -> Path:
    """The headers: a folder with ``build``, as KDIR, and the compiler ``cc``. An ArchiveError says what is missing."""
    for command in ("make", "gcc"):
        if shutil.which(command) is None:
            raise ArchiveError(f"to build a module takes {command}")
    release = tools.kernel.release
    folder = caches() / "headers" / f"{release}-{LAYOUT}"
    if not folder.exists():
        with only_one(folder.parent):
            if not folder.exists():
                _fetch(release, folder)
    return folder


def _fetch(release: str, folder: Path) -> None:
    """All or nothing: the folder takes its name when it is complete."""
    version = release.removesuffix("-cloud-amd64")
    packages = [f"linux-headers-{release}", f"linux-headers-{version}-common", f"linux-kbuild-{version}", *LIBELF]
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as name:
        making = Path(name)
        apt = Apt(making / "apt", (SUITE, BACKPORTS), security=f"{SUITE}-security")
        unpack(apt.download_named(packages), making / "headers" / "root")
        _adapt(making / "headers", folder, release, version)
        (making / "headers").rename(folder)


def _adapt(made: Path, final: Path, release: str, version: str) -> None:
    """Have everything find its parts where they will be, in ``final``."""
    sources = final / "root/usr/src"
    makefile = made / f"root/usr/src/linux-headers-{release}/Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{sources}/"))
    (made / "build").symlink_to(sources / f"linux-headers-{release}")
    root = final / "root"
    for program, suffix in PROGRAMS.items():
        path = Path(f"usr/lib/linux-kbuild-{version}") / program
        if not suffix:
            (made / "root" / path).rename(made / "root" / f"{path}.real")
        words = f'{root / LOADER} --library-path {root / LIBRARIES} {root / path}{suffix or ".real"} "$@"'
        _script(made / "root" / path, f"exec {words}")
    unknown = "|".join(flag for flag in NEWER if not _knows(flag)) or "none"
    loop = f'for word; do shift; case $word in {unknown}) ;; *) set -- "$@" "$word";; esac; done'
    _script(made / "cc", f'{loop}\nexec gcc "$@"')


def _knows(flag: str) -> bool:
    words = ("gcc", flag, "-fsyntax-only", "-x", "c", "/dev/null")
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _script(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
