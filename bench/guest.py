"""In a Linux guest under stock QEMU: our disks and network cards beside QEMU's own. The guest tests' bench runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.samples import Results

PART = "in a Linux guest"
QEMU = "QEMU"
TESTS = Path(__file__).parents[1] / "tests"
ALONE = ("unshare", "--user", "--map-root-user", "--net")


def usable() -> bool:
    """Whether a user may have namespaces, in which taps can be made."""
    return subprocess.run([*ALONE, "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0


def measure(results: Results, *, rounds: int) -> None:
    """Every load of :mod:`figures`, ``rounds`` times; without QEMU or namespaces, a word and no figures."""
    if not usable():
        print("no figures from a Linux guest: this user may not make namespaces (unshare)", file=sys.stderr)
        return
    command = [*ALONE, sys.executable, "-m", "figures", "--rounds", str(rounds)]
    paths = os.pathsep.join(map(str, (TESTS / "guest", TESTS)))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        print("no figures from a Linux guest", file=sys.stderr)
        return
    for what, whose, value, unit in json.loads(done.stdout):
        results.add(PART, what, whose, unit, [value])
