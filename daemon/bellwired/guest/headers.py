"""What modules for Debian's kernel are built with: its headers, in the cache; nothing is installed.

The programs among the headers were built for the guest's release, so they run with its libraries, which are fetched
with them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from bellwired.guest.archive import ArchiveError, unpack
from bellwired.guest.caches import caches, making, only_one
from bellwired.guest.fetch import SUITE, fetch, forget
from bellwired.guest.kernel import Kernel, KernelError
from bellwired.guest.progress import Progress, silent
from bellwired.guest.toolbox import LIBRARIES, LOADER

LAYOUT = 1  # raise it when what is made of the packages changes
LIBELF = ("libelf1t64", "zlib1g", "libzstd1", "libc6")  # what objtool is linked with
PROGRAMS = {"scripts/basic/fixdep": "", "scripts/mod/modpost": ".real-lsb-64", "tools/objtool/objtool": ".real-x86"}
"""The programs of kbuild, and what Debian puts behind the name of the one for x86-64."""
UNKNOWN = "Unable to locate package"  # as apt says it
_DEBIAN = re.compile(r"(\d[\d.]*(?:-\d+|\+deb\d+))(?:-rt)?(?:-cloud)?-amd64")


def tree_of(kernel: Kernel, progress: Progress = silent) -> Path:
    """What ``make -C`` takes to build modules for a kernel (KDIR): its build tree, or Debian's headers for it.

    The headers are fetched if the cache has them not. Raises a KernelError for a kernel that is not Debian's and whose
    tree is not known, and an ArchiveError if the archive cannot be reached or has the headers no more.
    """
    if kernel.build_tree:
        return kernel.build_tree
    if _DEBIAN.fullmatch(kernel.release) is None:
        hint = "give its build tree by --kernel, or install its headers"
        raise KernelError(f"{kernel.image}: no headers of Linux {kernel.release} are known", hint)
    folder = caches() / "headers" / f"{kernel.release}-{LAYOUT}"
    if not folder.exists():
        with only_one(folder.parent, progress):
            if not folder.exists():
                _fetch(kernel.release, folder, progress)
    return (folder / "build").resolve()


def run_with(root: Path, program: str) -> str:
    """A line of a shell script that runs a program below ``root`` with the loader and libraries that are there.

    The program sees the script's path as its name: make starts itself by it, and gcc finds its parts beside it.
    """
    return f'exec {root / LOADER} --argv0 "$0" --library-path {root / LIBRARIES} {root / program} "$@"'


def script(path: Path, text: str) -> None:
    """Put a shell script in the place of a file."""
    path.unlink(missing_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def _fetch(release: str, folder: Path, progress: Progress) -> None:
    found = _DEBIAN.fullmatch(release)
    assert found is not None
    packages = (f"linux-headers-{release}", f"linux-headers-{found[1]}-common", f"linux-kbuild-{found[1]}", *LIBELF)
    with making(folder) as made:
        try:
            fetched = fetch(
                folder, packages, progress, lambda apt, told: apt.download_named(packages, told), f"{SUITE}-security"
            )
        except ArchiveError as error:
            if UNKNOWN not in str(error):
                raise
            hint = f"remove {caches() / 'guest'} to fetch the kernel that the archive has now"
            raise ArchiveError(f"Debian's archive has no headers of Linux {release} any more", hint) from None
        progress.step(f"unpacking the headers of Linux {release}")
        unpack(fetched, made / "root", progress.share)
        _adapt(made, folder, release, found[1])
    forget(folder)


def _adapt(made: Path, final: Path, release: str, version: str) -> None:
    """Have everything find its parts where they will be, in ``final``."""
    sources = final / "root/usr/src"
    makefile = made / f"root/usr/src/linux-headers-{release}/Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{sources}/"))
    (made / "build").symlink_to(sources / f"linux-headers-{release}")
    for name, suffix in PROGRAMS.items():
        program = f"usr/lib/linux-kbuild-{version}/{name}"
        if not suffix:
            os.rename(made / "root" / program, made / "root" / f"{program}.real")
        script(made / "root" / program, run_with(final / "root", f"{program}{suffix or '.real'}"))
