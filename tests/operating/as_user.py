"""Starts the daemon as an ordinary user, also where the checkout lies in a folder of root's."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

USER = 54321
CHECKOUT = Path(__file__).parents[2]
_KEPT = {CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)}


def command(*, privileged: bool = False) -> list[str]:
    """Words that run a command as :data:`USER`, without capabilities and without groups; or ``privileged``, as root.

    In a mount namespace, what Python and Bellwire need stays where it is, and the closed folders above it are replaced
    by open ones.
    """
    as_user = (
        ""
        if privileged
        else f"setpriv --reuid={USER} --regid={USER} --clear-groups --inh-caps=-all --bounding-set=-all"
    )
    lines = ["set -e", "mount --make-rslave /"]
    closed = {top for path in _KEPT if (top := _closed(path))}
    if closed:
        kept = sorted(_KEPT, key=lambda path: len(path.parts))
        lines += ["mount -t tmpfs none /mnt"]
        for number, path in enumerate(kept):
            lines += [f"mkdir /mnt/{number}", f"mount --rbind {shlex.quote(str(path))} /mnt/{number}"]
        lines += [f"mount -t tmpfs -o mode=755 none {shlex.quote(str(top))}" for top in closed]
        for number, path in enumerate(kept):
            if _below(path, closed):
                where = shlex.quote(str(path))
                lines += [f"mkdir -p {where}", f"mount --rbind /mnt/{number} {where}"]
    return ["unshare", "--mount", "sh", "-c", "; ".join([*lines, f'exec {"" if privileged else as_user} "$0" "$@"'])]


def give(folder: Path) -> None:
    """Give a folder with all that is in it to :data:`USER`."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, USER)


def _closed(path: Path) -> Path | None:
    """The highest folder above ``path`` that others may not enter."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def _below(path: Path, folders: Iterable[Path]) -> bool:
    return any(folder in path.parents for folder in folders)
