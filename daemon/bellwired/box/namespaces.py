"""Namespaces of a boxed device's own, where this process may make them: an empty network, a private /tmp.

A user namespace would allow both to everybody. It is not used: in it, the users of clients would have no names, and it
opens more of the kernel than it closes. Without CAP_SYS_ADMIN, seccomp and Landlock refuse what these hide.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bellwire.linux import CLONE_NEWNS, MS_REC, MS_SLAVE, mount, unshare

CLONE_NEWNET = 0x4000_0000
PRIVATE = (Path("/tmp"), Path("/var/tmp"))


def own_network() -> None:
    """Leave the host's network for an empty one. Raises OSError."""
    unshare(CLONE_NEWNET)


def private_folders(used: Iterable[Path]) -> list[Path]:
    """Cover those of :data:`PRIVATE` with empty folders that have none of the ``used`` paths. Returns them."""
    places = [Path(path).absolute() for path in used]
    covered = [folder for folder in PRIVATE if folder.is_dir() and not any(_below(each, folder) for each in places)]
    if covered:
        unshare(CLONE_NEWNS)
        mount(None, "/", MS_SLAVE | MS_REC)
        for folder in covered:
            mount("tmpfs", str(folder))
    return covered


def _below(path: Path, folder: Path) -> bool:
    return any(folder in (each, *each.parents) for each in (path, path.resolve()))
