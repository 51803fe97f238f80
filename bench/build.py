"""Builds the benchmark's C programs when they are needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).parent
TARGET = SOURCES.parent / "build" / "bench"
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")


class NoCompilerError(Exception):
    """There is no C compiler."""


def program(name: str) -> Path:
    """The program ``name`` (reference, client, vmm), built if its sources are newer; NoCompilerError without a cc."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompilerError("the benchmark's C programs need a C compiler: make bench installs one")
    sources = [SOURCES / f"{name}.c", SOURCES / "wire.h"]
    target = TARGET / name
    if not target.exists() or target.stat().st_mtime < max(source.stat().st_mtime for source in sources):
        TARGET.mkdir(parents=True, exist_ok=True)
        subprocess.run([compiler, *FLAGS, "-o", str(target), str(sources[0])], check=True)
    return target
