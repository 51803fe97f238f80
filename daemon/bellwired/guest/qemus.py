"""A QEMU that can attach our devices, and how fast it runs a guest here."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bellwire_vmm.emulation import emulates_kernels
from bellwired.guest.errors import MachineError

OLDEST = (10, 1, 1)
DEVICE = "vfio-user-pci"
PATIENCE = 30.0  # seconds for QEMU to say what it is
_VERSION = re.compile(r"QEMU emulator version (\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class Qemu:
    """A QEMU: how its command line begins, what its environment is, its version, and the accelerator to use."""

    words: tuple[str, ...]
    version: tuple[int, int, int]
    accelerator: str
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    virtiofsd: tuple[str, ...] = ()
    """How the command line of virtiofsd begins; empty if there is none."""


def inspect(words: tuple[str, ...], environment: Mapping[str, str], virtiofsd: tuple[str, ...] = ()) -> Qemu:
    """Ask a QEMU what it is. Raises a MachineError if it cannot attach our devices."""
    name = words[0] if len(words) == 1 else Path(next(word for word in words if "qemu-system" in word)).name
    found = _VERSION.match(_said(words, environment, "--version"))
    if found is None:
        raise MachineError(f"{name} does not say its version")
    version = (int(found[1]), int(found[2]), int(found[3]))
    if version < OLDEST:
        raise MachineError(f"{name} is version {_text(version)}: {DEVICE} works from {_text(OLDEST)} on")
    if f'"{DEVICE}"' not in _said(words, environment, "-device", "help"):
        raise MachineError(f"{name} has no device {DEVICE}: it was built without it")
    return Qemu(words, version, accelerator(), environment, virtiofsd)


@functools.cache
def accelerator() -> str:
    """``kvm`` where KVM runs a guest's kernel on the processor, else ``tcg``."""
    usable = os.access("/dev/kvm", os.R_OK | os.W_OK)
    return "kvm" if usable and not emulates_kernels() else "tcg"


def _said(words: tuple[str, ...], environment: Mapping[str, str], *options: str) -> str:
    try:
        done = subprocess.run(
            [*words, *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(f"{words[0]} does not run: {error}") from None
    return done.stdout


def _text(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
