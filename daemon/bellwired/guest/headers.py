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


def wrap(root: Path, program: str, real: str, words: str = "") -> None:
    """Put a shell script in the place of ``program``. It runs ``real`` with the loader and libraries below ``root``.

    The script finds them by its own place, so the whole folder can be moved or copied. The program sees the script's
    path as its name: make starts itself by it, and gcc finds its parts beside it. ``words`` come before the arguments.
    """
    up = "/".join([".."] * program.count("/"))
    path = root / program
    path.unlink(missing_ok=True)
    path.write_text(
        f'#!/bin/sh\nroot="${{0%/*}}/{up}"\n'
        f'exec "$root/{LOADER}" --argv0 "$0" --library-path "$root/{LIBRARIES}" "$root/{real}" {words}"$@"\n'
    )
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
        adapt(made, release, found[1])
    forget(folder)


def adapt(folder: Path, release: str, version: str) -> None:
    """Have the headers that were unpacked below ``folder`` find their parts there, wherever it will be."""
    headers = f"root/usr/src/linux-headers-{release}"
    makefile = folder / headers / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", "$(dir $(lastword $(MAKEFILE_LIST)))../"))
    (folder / "build").symlink_to(headers)
    for name, suffix in PROGRAMS.items():
        program = f"usr/lib/linux-kbuild-{version}/{name}"
        if not suffix:
            os.rename(folder / "root" / program, folder / "root" / f"{program}.real")
        wrap(folder / "root", program, f"{program}{suffix or '.real'}")
