"""What the firmware boots: programs that read a disk or were loaded from a network, and print a CRC-32 of it."""

from __future__ import annotations

import os
import subprocess
import zlib
from pathlib import Path

SOURCES = Path(__file__).parent / "payload"
READ = 1 << 20  # bytes of a disk that a program takes into its checksum
DISK = 8 << 20
SECTOR = 512
REAL_MODE = ("-m32", "-nostdlib", "-static", "-Wl,-Ttext=0x7c00,--oformat=binary,-e,start,--build-id=none")


def real_mode(name: str, folder: Path) -> bytes:
    """``payload/NAME.S``, assembled to lie at 0x7c00."""
    made = folder / name
    words: list[str | Path] = ["gcc", *REAL_MODE, "-I", SOURCES, "-o", made, SOURCES / f"{name}.S"]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    return made.read_bytes()


def boot_disk(folder: Path) -> Path:
    """A disk with the boot sector, and content that nobody has seen before."""
    sector = real_mode("disk", folder)
    assert len(sector) == SECTOR
    path = folder / "disk.img"
    path.write_bytes((sector + os.urandom(READ - SECTOR)).ljust(DISK, b"\0"))
    return path


def crc_of_start(disk: Path) -> int:
    """Of what a program reads."""
    return zlib.crc32(disk.read_bytes()[:READ])


def written_by_boot_sector(disk: Path) -> int:
    """The checksum that it has written behind what it has read."""
    mark = b"written by a boot sector "
    sector = disk.read_bytes()[READ : READ + SECTOR]
    assert sector.startswith(mark), sector
    return int.from_bytes(sector[len(mark) :][:4], "little")
