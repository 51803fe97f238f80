"""The folder in which fetched and built things are kept, and the lock that one process at a time holds."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bellwired.guest.progress import Progress, silent

MAKING = ".making-"
"""The names of folders in the making begin so. They are renamed when they are complete."""


def caches() -> Path:
    """The folder ``bellwire`` in the user's cache (XDG Base Directory Specification)."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "bellwire"


@contextlib.contextmanager
def only_one(parent: Path, progress: Progress = silent) -> Iterator[None]:
    """Hold the lock of ``parent``. Other processes wait for it, and say so; then they find what was made."""
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.step(f"another process is making something in {parent}: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """An empty folder, which becomes ``folder`` when the block ends without an error: all or nothing.

    The caller holds the lock of the parent and makes such folders in no other way, so what a killed process has left
    half made is removed first.
    """
    for left in folder.parent.glob(f"{MAKING}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=MAKING) as name:
        made = Path(name) / "made"
        made.mkdir()
        yield made
        made.rename(folder)
