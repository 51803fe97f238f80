"""QEMU, a Linux kernel and a shell for guests, fetched from Debian's archive into the cache, without root."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bellwired.guest.archive import Apt, ArchiveError, Told, unpack
from bellwired.guest.caches import caches, making, only_one
from bellwired.guest.progress import Progress, silent
from bellwired.guest.toolbox import Toolbox

SUITE, BACKPORTS = "trixie", "trixie-backports"
FROM_BACKPORTS = ("qemu", "seabios")  # the first QEMU that a vfio-user device works in is 10.1.1
PACKAGES = ("qemu-system-x86", "virtiofsd", "linux-image-cloud-amd64", "busybox-static")
LAYOUT = 1  # raise it when what is made of the packages changes
RECIPE = "recipe.json"


def fetch_guest_tools(progress: Progress = silent, extra: Sequence[str] = ()) -> Toolbox:
    """What a guest is made of, fetched if the cache has it not yet. ``extra`` are more packages, for the guest.

    Several processes may call it at once: one fetches, and the others wait for it. What an interrupted run has fetched
    is used by the next one. Raises an ArchiveError.
    """
    packages = (*PACKAGES, *extra)
    folder = place(packages)
    if (there := _find(folder, packages)) is None:
        with only_one(folder.parent, progress):
            if (there := _find(folder, packages)) is None:
                _fetch(folder, packages, progress)
                there = folder
    return Toolbox(there)


def place(packages: Sequence[str]) -> Path:
    """The folder of the cache for these packages. Its name is a digest of all that decides what is in it."""
    recipe = repr((LAYOUT, SUITE, BACKPORTS, FROM_BACKPORTS, tuple(packages)))
    return caches() / "guest" / hashlib.sha256(recipe.encode()).hexdigest()[:16]


def _find(folder: Path, packages: Sequence[str]) -> Path | None:
    """Where the packages are: ``folder``, or another one of the cache that was fetched with more of them."""
    if folder.exists():
        if not (folder / RECIPE).exists():
            (folder / RECIPE).write_text(json.dumps(packages))
        return folder
    return next((other for other, has in _others(folder.parent) if has >= set(packages)), None)


def _others(parent: Path) -> Iterator[tuple[Path, set[str]]]:
    """The folders of the same layout and suites, and the packages that they were made of."""
    for recipe in parent.glob(f"[!.]*/{RECIPE}"):
        packages = json.loads(recipe.read_text())
        if place(packages) == recipe.parent:
            yield recipe.parent, set(packages)


def _fetch(folder: Path, packages: Sequence[str], progress: Progress) -> None:
    if platform.machine() != "x86_64":
        raise ArchiveError(f"QEMU and Linux are fetched for x86_64, and this machine is {platform.machine()}")
    start = time.monotonic()
    with making(folder) as made:
        fetched = fetch(folder, packages, progress, lambda apt, told: apt.download(packages, told))
        progress.step(f"unpacking {len(fetched)} packages")
        unpack(fetched, made / "root", progress.share)
        Toolbox(made).check()
        (made / RECIPE).write_text(json.dumps(packages))
    forget(folder)
    progress.step(f"done in {time.monotonic() - start:.0f} s: {folder}")


def fetch(
    folder: Path,
    packages: Sequence[str],
    progress: Progress,
    download: Callable[[Apt, Told], list[Path]],
    security: str = "",
) -> list[Path]:
    """What ``download`` fetches for ``folder``. It is kept beside the folder until :func:`forget`."""
    apt = Apt(_downloads(folder), (SUITE, BACKPORTS), dict.fromkeys(FROM_BACKPORTS, BACKPORTS), security)
    what = f"{', '.join(packages)} of Debian {SUITE}"
    hint = f"check the network and the proxy of apt's configuration, or copy {folder} from a machine that has it"
    progress.step(f"fetching {what} from {apt.where}")
    try:
        return download(apt, progress.share)
    except ArchiveError as error:
        raise ArchiveError(f"cannot fetch {what} from {apt.where}: {error}", error.hint or hint) from None


def forget(folder: Path) -> None:
    """Remove what was fetched for ``folder``."""
    shutil.rmtree(_downloads(folder), ignore_errors=True)


def _downloads(folder: Path) -> Path:
    return folder.parent / f".fetching-{folder.name}"
