"""Minimal Debian systems, made once by mmdebstrap and kept: what they lack is what a newcomer's machine may lack."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bed import CHECKOUT, Bed
from bellwired.guest.archive import ArchiveError, find_keyring, find_mirror

MINIMAL = ("make", "sudo", "systemd", "systemd-sysv")
SUITES = ("bookworm", "trixie")
PATIENCE = 900.0  # seconds, for a slow mirror
# How this machine reaches a network, which is not part of what is tested.
NETWORK = ("etc/hosts", "etc/resolv.conf")
VARIABLES = ("http_proxy", "https_proxy", "no_proxy")
AUTHORITIES = ("PIP_CERT", "SSL_CERT_FILE")


def why_not() -> str:
    """What this machine lacks for a root; empty where nothing is missing."""
    if shutil.which("mmdebstrap") is None:
        return "no mmdebstrap: apt install mmdebstrap"
    try:
        find_mirror()
    except ArchiveError as error:
        return str(error)
    return ""


def root(suite: str, packages: Sequence[str] = MINIMAL) -> Path:
    """A root of ``suite`` with ``packages`` beside the essential ones. Nobody may change it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bellwire/roots"
    cache.mkdir(parents=True, exist_ok=True)
    place = cache / "-".join((suite, *packages))
    with (cache / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            _make(suite, packages, place)
    return place


def check_out(system: Bed, folder: str) -> None:
    """Lay the project's files out in a system, as a clone would."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, check=True).stdout
    words = ["tar", "-c", "--null", "-T", "-"]
    packed = subprocess.run(words, cwd=CHECKOUT, input=files, capture_output=True, check=True).stdout
    place = system.path(folder)
    place.mkdir()
    subprocess.run(["tar", "-x", "--no-same-owner", "-C", str(place)], input=packed, check=True)


def _make(suite: str, packages: Sequence[str], place: Path) -> None:
    half = place.with_suffix(".half")
    shutil.rmtree(half, ignore_errors=True)
    words = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
    words.append(f"--keyring={find_keyring()}")
    done = subprocess.run(
        [*words, suite, str(half), find_mirror()],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if done.returncode:
        raise ArchiveError(f"mmdebstrap {suite}: {done.stderr.strip()}")
    for name in NETWORK:
        (half / name).unlink(missing_ok=True)
        shutil.copyfile(Path("/", name), half / name)
    known = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    for name in AUTHORITIES:
        if name in os.environ:
            (half / "etc/ssl").mkdir(exist_ok=True)
            shutil.copyfile(os.environ[name], half / f"etc/ssl/{name}")  # the system's own is made anew by packages
            known[name] = f"/etc/ssl/{name}"
    (half / "etc/environment").write_text("".join(f"{name}={value}\n" for name, value in known.items()))
    half.rename(place)


if __name__ == "__main__":
    for name in sys.argv[1:] or SUITES:
        print(root(name))
