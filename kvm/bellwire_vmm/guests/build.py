"""Build the micro guests from their sources: ``python -m bellwire_vmm.guests.build [DIRECTORY]``.

A machine loads the prebuilt images beside this file. Only a change to a guest needs a compiler (gcc and binutils for
x86-64).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from bellwire_vmm.guests import IMAGES

SOURCES = Path(__file__).parent / "src"
SHARED = ("start.S", "cpu.c", "config.c")

#: What each guest is made of beside the shared sources: its main file, and macros.
GUESTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bell": ("bell.c", ()),
    "bell3": ("bell.c", ("-DRING3",)),
    "blk": ("blk.c", ()),
    "edu": ("edu.c", ()),
    "nvme": ("nvme.c", ()),
    "pci": ("pci.c", ()),
}

#: General registers only (ring 0 may be emulated, and its emulator knows little else), nothing from a C
#: library, nothing that differs from one build to the next.
FLAGS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"),
    *("-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie"),
    *("-mgeneral-regs-only", "-mno-sse", "-mno-mmx", "-mno-red-zone"),
    *("-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables"),
    *("-fno-jump-tables", "-fno-tree-loop-distribute-patterns"),
    *("-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096"),
)


def build(name: str, target: Path) -> None:
    """Compile guest ``name`` into the flat image ``target``; subprocess.CalledProcessError if gcc objects."""
    main, macros = GUESTS[name]
    sources = [str(SOURCES / source) for source in (*SHARED, main)]
    with tempfile.TemporaryDirectory() as scratch:
        linked = Path(scratch) / f"{name}.elf"
        script = ("-T", str(SOURCES / "guest.ld"))
        subprocess.run(["gcc", *FLAGS, *macros, *script, *sources, "-o", str(linked)], check=True)
        subprocess.run(["objcopy", "-O", "binary", str(linked), str(target)], check=True)
    target.chmod(0o644)


def main() -> int:
    """Build every guest into the directory named on the command line, or in place of the prebuilt ones."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    directory.mkdir(parents=True, exist_ok=True)
    for name in GUESTS:
        build(name, directory / f"{name}.bin")
    return 0


if __name__ == "__main__":
    sys.exit(main())
