"""The compiler that modules are built with: the machine's own, or Debian's, in the cache; nothing is installed."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bellwired.errors import CommandError
from bellwired.guest.archive import unpack
from bellwired.guest.caches import caches, making, only_one
from bellwired.guest.fetch import SUITE, fetch, forget
from bellwired.guest.headers import wrap
from bellwired.guest.progress import Progress, silent

LAYOUT = 1  # raise it when what is made of the packages changes
PACKAGES = ("gcc", "binutils", "make", "libc6-dev")
COMMANDS = ("gcc", "make", "ld", "objcopy")
FOLDERS = ("usr/bin", "usr/libexec/gcc/x86_64-linux-gnu")
MERGED = ("lib", "lib64")  # Debian's base-files has these links
GCC = "usr/bin/gcc"
ALIGNED = "-fmin-function-alignment=16"
"""A flag of Debian's kernel that a compiler older than gcc 14 lacks; modules do well without it."""


@dataclass(frozen=True)
class Compiler:
    """``folder`` has ``gcc``, ``make`` and the binutils; None if they are the machine's own."""

    folder: Path | None = None

    @property
    def path(self) -> str:
        """The search path for commands."""
        path = os.environ.get("PATH", os.defpath)
        return f"{self.folder}:{path}" if self.folder else path

    def command(self, name: str) -> str:
        """One of its commands, as it is started."""
        return os.fspath(self.folder / name) if self.folder else name

    @functools.cached_property
    def aligns(self) -> bool:
        """Whether it knows the flag :data:`ALIGNED`."""
        words = (self.command("gcc"), ALIGNED, "-fsyntax-only", "-x", "c", os.devnull)
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def find_compiler(progress: Progress = silent) -> Compiler:
    """The machine's own, if it has gcc, make and the binutils; else Debian's, fetched if the cache has it not."""
    if all(map(shutil.which, COMMANDS)):
        return Compiler()
    return fetch_compiler(progress)


def fetch_compiler(progress: Progress = silent) -> Compiler:
    """Debian's compiler. Raises an ArchiveError."""
    recipe = repr((LAYOUT, SUITE, PACKAGES))
    folder = caches() / "compiler" / hashlib.sha256(recipe.encode()).hexdigest()[:16]
    if not folder.exists():
        with only_one(folder.parent, progress):
            if not folder.exists():
                _fetch(folder, progress)
    return Compiler(folder / "root/usr/bin")


def _fetch(folder: Path, progress: Progress) -> None:
    with making(folder) as made:
        fetched = fetch(folder, PACKAGES, progress, lambda apt, told: apt.download(PACKAGES, told))
        progress.step("unpacking the compiler")
        unpack(fetched, made / "root", progress.share)
        for name in MERGED:
            (made / "root" / name).symlink_to(f"usr/{name}")
        adapt(made / "root")
    forget(folder)


def adapt(root: Path) -> None:
    """Have each program run with the loader and libraries that it was built for, and gcc find its parts and headers."""
    gcc = (root / GCC).resolve()
    for program in _programs(root):
        name = os.fspath(program.relative_to(root))
        program.rename(program.with_name(f"{program.name}.real"))
        wrap(root, name, f"{name}.real", '-B"$root/usr/bin" --sysroot="$root" ' if program == gcc else "")
    if not gcc.is_file():
        raise CommandError(f"{GCC} is not among the packages {', '.join(PACKAGES)} of Debian {SUITE}")


def _programs(root: Path) -> Iterator[Path]:
    """The programs that are dynamically linked."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and not path.is_symlink() and os.access(path, os.X_OK) and _is_program(path):
                yield path


def _is_program(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF" and ".so" not in path.name
