"""The Python that runs inside: a virtual environment of the system's own interpreter, made once and kept.

A developer's interpreter may lie below /root or /home, which ProtectHome= hides from a service; systemd-python comes
with the system's. The project is installed in it as an editable one, from where boot.sh shows the checkout.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

PYTHON = "/usr/bin/python3"
MAKE = """
umask 022
mount -t tmpfs bed /srv
mkdir -p /srv/bellwire/venv /srv/bellwire/src
mount --bind "$1" /srv/bellwire/venv
mount --bind "$2" /srv/bellwire/src
cd /srv/bellwire/src
$0 -m venv --system-site-packages /srv/bellwire/venv
/srv/bellwire/venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
"""


def why_not() -> str:
    """What the system's interpreter lacks; empty where it lacks nothing."""
    check = "import ensurepip, sys, systemd.journal; sys.exit(sys.version_info < (3, 11))"
    try:
        done = subprocess.run([PYTHON, "-c", check], cwd="/", capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"no {PYTHON}"
    if done.returncode:
        return f"{PYTHON}: {done.stderr.strip().rpartition(chr(10))[2] or 'older than 3.11'}"
    return ""


def venv(checkout: Path) -> Path:
    """Where it is kept. It works only when it is mounted as /srv/bellwire/venv."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bellwire"
    cache.mkdir(parents=True, exist_ok=True)
    place = cache / f"venv-{_fingerprint(checkout)}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            _make(place, checkout)
    return place


def _make(place: Path, checkout: Path) -> None:
    """In a mount namespace of its own, where it has the path that it will have; complete or not at all."""
    half = place.with_suffix(".half")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", MAKE, PYTHON, str(half), str(checkout)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"cannot make the virtual environment of the tests:\n{done.stdout}{done.stderr}")
    half.rename(place)


def _fingerprint(checkout: Path) -> str:
    """What it is made of: the system's interpreter, and what the project says it needs."""
    text = subprocess.run([PYTHON, "-VV"], capture_output=True, check=True).stdout
    for name in ("pyproject.toml", "constraints.txt"):
        text += (checkout / name).read_bytes()
    return hashlib.sha256(text).hexdigest()[:16]
