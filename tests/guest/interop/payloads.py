"""What the firmware boots: programs that read a disk or were loaded from a network, and print a CRC-32 of it."""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from pathlib import Path

from bellwired.guest.toolbox import Toolbox

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
    """Of what the boot sector reads."""
    return zlib.crc32(disk.read_bytes()[:READ])


def written_by_boot_sector(disk: Path) -> int:
    """The checksum that it has written behind what it has read."""
    return _written(disk, READ, b"written by a boot sector ")


def _written(disk: Path, at: int, mark: bytes) -> int:
    with disk.open("rb") as file:
        file.seek(at)
        sector = file.read(SECTOR)
    assert sector.startswith(mark), sector
    return int.from_bytes(sector[len(mark) :][:4], "little")


# -- EFI

EFI = ("-std=gnu11", "-Os", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fpie", "-fvisibility=hidden")
LINK = ("-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,-z,noexecstack")
NO_SSE = ("-mno-red-zone", "-mgeneral-regs-only", "-fno-stack-protector", "-fno-asynchronous-unwind-tables")
BASE = 0x1000


def efi_program(folder: Path) -> bytes:
    """``payload/efi.c`` as an EFI application."""
    linked, flat = folder / "efi.elf", folder / "efi.flat"
    script = SOURCES / "efi.ld"
    words: list[str | Path] = ["gcc", *EFI, *NO_SSE, *LINK, "-T", script, "-o", linked, SOURCES / "efi.c"]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".all", linked, flat], check=True, stdin=subprocess.DEVNULL)
    symbols = subprocess.run(["nm", linked], check=True, capture_output=True, text=True).stdout
    (entry,) = (int(line.split()[0], 16) for line in symbols.splitlines() if line.endswith(" T entry"))
    return _pe(flat.read_bytes(), entry)


def _pe(code: bytes, entry: int) -> bytes:
    """A PE32+ image with one section for all (Microsoft, PE Format). It needs no relocations."""
    size = -(-len(code) // BASE) * BASE
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40)
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, 1, 0, 0, 0, 0xF0, 0x22)  # executable, large addresses
    standard = struct.pack("<HBBIIIII", 0x20B, 0, 0, size, 0, 0, entry, BASE)
    windows = struct.pack("<QIIHHHHHHIIIIHH", 0, BASE, SECTOR, 0, 0, 0, 0, 0, 0, 0, BASE + size, SECTOR, 0, 10, 0)
    sizes = struct.pack("<QQQQII", 0, 0, 0, 0, 0, 16) + bytes(16 * 8)  # no directory
    section = struct.pack("<8sIIIIIIHHI", b".all", size, BASE, size, SECTOR, 0, 0, 0, 0, 0xE0000060)
    head = dos + coff + standard + windows + sizes + section
    return head.ljust(SECTOR, b"\0") + code.ljust(size, b"\0")


def efi_disk(tools: Toolbox, folder: Path) -> Path:
    """A disk with a FAT partition, the program in it where firmware looks, and a MiB at its end that nobody knows."""
    files = folder / "files" / "EFI" / "BOOT"
    files.mkdir(parents=True)
    (files / "BOOTX64.EFI").write_bytes(efi_program(folder))
    path = folder / "efi.img"
    words: list[str | Path] = [
        *tools.command("usr/bin/qemu-img"),
        "convert",
        "-f",
        "vvfat",
        "-O",
        "raw",
        f"fat:{folder / 'files'}",
        path,
    ]
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, env=tools.qemu_environment)
    with path.open("ab") as file:
        file.write(bytes(SECTOR) + os.urandom(READ))
    return path


def crc_of_end(disk: Path) -> int:
    """Of what the EFI program reads."""
    with disk.open("rb") as file:
        file.seek(-READ, os.SEEK_END)
        return zlib.crc32(file.read())


def written_by_efi_program(disk: Path) -> int:
    """The checksum that it has written before what it has read."""
    return _written(disk, disk.stat().st_size - READ - SECTOR, b"written by an EFI program ")


# -- PXE

LOADED = 64 << 10
"""Bytes of content that the network's program takes into its checksum."""


def network_program(folder: Path) -> bytes:
    """A program that a network card's firmware loads, with content that nobody knows behind it."""
    return real_mode("net", folder) + os.urandom(LOADED)


def crc_of_program(program: bytes) -> int:
    """Of what is behind the program."""
    return zlib.crc32(program[-LOADED:])
