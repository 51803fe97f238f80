"""Programs of Debian's that tests run: fetched into the cache without root, and not installed."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bellwired.guest.archive import unpack
from bellwired.guest.caches import caches, making, only_one
from bellwired.guest.fetch import SUITE, fetch, forget
from bellwired.guest.progress import Progress, silent

LAYOUT = 1  # raise it when what is made of the packages changes


def fetched(packages: tuple[str, ...], progress: Progress = silent) -> Path:
    """A root folder with ``packages`` and all that they need. An ArchiveError says what stands in the way."""
    folder = caches() / packages[0] / hashlib.sha256(repr((LAYOUT, SUITE, packages)).encode()).hexdigest()[:16]
    if not folder.exists():
        with only_one(folder.parent, progress):
            if not folder.exists():
                with making(folder) as made:
                    files = fetch(folder, packages, progress, lambda apt, told: apt.download(packages, told))
                    progress.step(f"unpacking {len(files)} packages")
                    unpack(files, made / "root", progress.share)
                forget(folder)
    return folder / "root"
