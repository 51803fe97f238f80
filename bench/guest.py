"""Bellwire's disks and network cards beside QEMU's own, in a Linux guest under stock QEMU and under the patched one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.samples import Results

PART = "in a Linux guest"
PATCHED = "in a Linux guest under the patched QEMU"
VHOST = "a disk in a vhost-user back end's hands"
QEMU = "QEMU"
OURS = "bellwire"
BY_DESCRIPTOR, OWN = "by descriptor", "QEMU's own"  # as :mod:`ring_figures` has them
IN_STOCK, IN_PATCHED = "virtio-blk, stock", "virtio-blk, patched"  # as :mod:`vhost_figures` has them
TESTS = Path(__file__).parents[1] / "tests"
ALONE = ("unshare", "--user", "--map-root-user", "--net")


def usable() -> bool:
    """Whether this user may create namespaces, which taps need."""
    return subprocess.run([*ALONE, "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0


def measure(results: Results, *, rounds: int) -> None:
    """Disks and cards in stock QEMU (:mod:`figures`). Without QEMU or namespaces, print why and measure nothing."""
    if not usable():
        print("no figures from a Linux guest: this user may not make namespaces (unshare)", file=sys.stderr)
        return
    _add(results, PART, [*ALONE, sys.executable, "-m", "figures", "--rounds", str(rounds)])


def measure_patched(results: Results, *, rounds: int) -> None:
    """Disks by descriptor and by message (:mod:`ring_figures`), if the patched QEMU has been built."""
    _add(results, PATCHED, [sys.executable, "-m", "ring_figures", "--json", "--rounds", str(rounds)])


def measure_vhost(results: Results, *, rounds: int) -> None:
    """A disk in a back end's hands (:mod:`vhost_figures`), if the patched QEMU has been built."""
    _add(results, VHOST, [sys.executable, "-m", "vhost_figures", "--rounds", str(rounds)])


def _add(results: Results, part: str, command: list[str]) -> None:
    """Run a command that measures, and add what it prints."""
    paths = os.pathsep.join(map(str, (TESTS / "guest", TESTS)))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        print(f"no figures {part}", file=sys.stderr)
        return
    for what, whose, value, unit in json.loads(done.stdout):
        results.add(part, what, whose, unit, [value])
