"""A QEMU that can attach our devices, and how fast it runs a guest here."""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bellwire_vmm.emulation import emulates_kernels, makes_machines
from bellwired.guest.caches import caches
from bellwired.guest.errors import MachineError
from bellwired.guest.toolbox import Toolbox

log = logging.getLogger("bellwired")

OLDEST = (10, 1, 1)
DEVICE = "vfio-user-pci"
PROGRAM = "qemu-system-x86_64"
VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd")
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

    @property
    def text(self) -> str:
        """The version, as ``10.1.1``."""
        return _text(self.version)

    @property
    def how(self) -> str:
        """The accelerator, for people."""
        return "on KVM" if self.accelerator == "kvm" else "emulated (TCG)"


def find_qemu(tools: Toolbox, wanted: str = "", needed: Collection[str] = (DEVICE,)) -> Qemu:
    """The QEMU ``wanted``, or the best one: our patched one, the machine's own, or Debian's in the cache.

    It must have the devices ``needed``. Raises a MachineError that says why none will do.
    """
    virtiofsd = _virtiofsd(tools)
    if wanted:
        return inspect((wanted, *_firmware(tools, wanted)), os.environ, virtiofsd, needed)
    there = [str(path) for path in sorted((caches() / "qemu").glob(f"*/{PROGRAM}"), key=_changed, reverse=True)[:1]]
    own = shutil.which(PROGRAM)
    for program in [*there, *([own] if own else [])]:
        try:
            return inspect((program, *_firmware(tools, program)), os.environ, virtiofsd, needed)
        except MachineError as error:
            log.debug("%s", error)
    return inspect(tuple(tools.qemu), tools.qemu_environment, virtiofsd, needed)


def inspect(
    words: tuple[str, ...],
    environment: Mapping[str, str],
    virtiofsd: tuple[str, ...] = (),
    needed: Collection[str] = (DEVICE,),
) -> Qemu:
    """Ask a QEMU what it is. Raises a MachineError if it is too old, or lacks a device that is ``needed``."""
    name = next((word for word in words if "qemu-system" in word), words[0])
    found = _VERSION.match(_said(words, environment, "--version"))
    if found is None:
        raise MachineError(f"{name} does not say its version")
    version = (int(found[1]), int(found[2]), int(found[3]))
    if version < OLDEST:
        raise MachineError(f"{name} is version {_text(version)}: {DEVICE} works from {_text(OLDEST)} on")
    has = _said(words, environment, "-device", "help")
    for device in needed:
        if f'"{device}"' not in has:
            raise MachineError(f"{name} has no device {device}: it was built without it")
    return Qemu(words, version, accelerator(), environment, virtiofsd)


@functools.cache
def accelerator() -> str:
    """``kvm`` where KVM runs a guest's kernel on the processor, as far as that can be told, else ``tcg``."""
    emulates = emulates_kernels()
    return "kvm" if emulates is False or (emulates is None and makes_machines()) else "tcg"


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


def _firmware(tools: Toolbox, program: str) -> list[str]:
    """A QEMU that is not installed finds its firmware among the tools."""
    return [] if Path(program).parent == Path("/usr/bin") else list(tools.firmware)


def _virtiofsd(tools: Toolbox) -> tuple[str, ...]:
    """The machine's own, or that of the tools."""
    own = next((path for path in VIRTIOFSD if os.access(path, os.X_OK)), None)
    return (own,) if own else tuple(tools.virtiofsd)


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _text(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
