"""What the guest tests run on: QEMU with vfio-user-pci, a Linux kernel, and programs for the guest.

``python tests/guest/provision.py`` fetches it from Debian into a cache folder (about 120 MB to fetch, 350 MB on disk, a
quarter of a minute and no root), and is done at once when it is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from debian import Apt, AptError, unpack
from toolbox import Toolbox

SUITE, BACKPORTS = "trixie", "trixie-backports"
FROM_BACKPORTS = ("qemu", "seabios")
PACKAGES = (
    "qemu-system-x86",
    "virtiofsd",
    "linux-image-cloud-amd64",
    "busybox-static",
    "e2fsprogs",
    "nvme-cli",
    "fio",
    "iperf3",
    "systemd",
)
LAYOUT = 1  # raise it when what is made of the packages changes


def caches() -> Path:
    """Where everything is kept that tests fetch or build."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bellwire"


def cache() -> Path:
    """Where it is kept: under a name that tells what is in it."""
    recipe = repr((LAYOUT, SUITE, BACKPORTS, FROM_BACKPORTS, PACKAGES))
    return caches() / "guest" / hashlib.sha256(recipe.encode()).hexdigest()[:16]


def provision() -> Toolbox:
    """The tools, fetched if they are not there yet. An AptError says what stands in the way."""
    folder = cache()
    if not folder.exists():
        with only_one(folder.parent):
            if not folder.exists():
                _fetch(folder)
    return Toolbox(folder)


def _fetch(folder: Path) -> None:
    """All or nothing: the folder takes its name when it is complete."""
    if platform.machine() != "x86_64":
        raise AptError(f"the tools are for x86_64, and this is {platform.machine()}")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as name:
        making = Path(name)
        print(f"fetching {', '.join(PACKAGES)} of Debian {SUITE}", flush=True)
        apt = Apt(making / "apt", (SUITE, BACKPORTS), dict.fromkeys(FROM_BACKPORTS, BACKPORTS))
        packages = apt.download(PACKAGES)
        size = sum(package.stat().st_size for package in packages)
        print(f"unpacking {len(packages)} packages, {size / 1e6:.0f} MB", flush=True)
        unpack(packages, making / "tools" / "root")
        Toolbox(making / "tools").check()
        (making / "tools").rename(folder)
    print(f"done in {time.monotonic() - start:.0f} s: {folder}", flush=True)


@contextlib.contextmanager
def only_one(parent: Path) -> Iterator[None]:
    """Others who want the same wait, and then find it there."""
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Fetch what is missing, and say what there is."""
    from modules import provide  # it needs what is above

    try:
        tools = provision()
        print(tools.describe())
        print(f"the kernel's headers: {provide(tools)}")
    except (AptError, OSError) as error:
        print(f"cannot provide what the guest tests need: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
