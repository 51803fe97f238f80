"""Build the agent from its sources: ``python -m bellwired.guest.agent.build [FILE]``.

A machine boots the prebuilt program beside this file. Only a change to the agent needs a compiler (gcc and binutils
for x86-64, and the kernel's headers for programs: Debian's linux-libc-dev).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bellwired.guest.agent import PROGRAM

FOLDER = PROGRAM.parent

SOURCES = ("main.c", "machine.c", "commands.c", "tools.c", "text.c")
FLAGS = (
    *("-std=gnu11", "-Os", "-Wall", "-Wextra", "-Werror"),
    *("-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie"),
    *("-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables"),
    *("-fno-tree-loop-distribute-patterns", "-fno-strict-aliasing"),
    *("-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096", "-s"),
)


def build(target: Path) -> None:
    """Compile the agent into ``target``; subprocess.CalledProcessError if gcc objects."""
    subprocess.run(["gcc", *FLAGS, *(str(FOLDER / name) for name in SOURCES), "-o", str(target)], check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else PROGRAM)
