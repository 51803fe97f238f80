"""Firmware boots from our disks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from attached import Device, Served
from bellwired.guest.toolbox import Toolbox
from interop import payloads
from interop.fetched import Firmware
from interop.machines import booted
from interop.page import Row

pytestmark = [pytest.mark.guest, pytest.mark.long]

DISKS = pytest.mark.parametrize("disk", ["nvme", "virtio-blk"])


@DISKS
def test_seabios_boots_from_it(
    row: Row, tools: Toolbox, tmp_path: Path, serve: Callable[[Device], Served], disk: str
) -> None:
    """SeaBIOS boots, reads and writes"""
    image = payloads.boot_disk(tmp_path)
    served = serve(Device(disk, {"image": image}))
    said = tmp_path / "bios"
    debug = ["-chardev", f"file,id=bios,path={said}", "-device", "isa-debugcon,iobase=0x402,chardev=bios"]
    with booted(tools, tmp_path, [served], *debug) as serial:
        found = serial.wait_for(r"boot sector: (.*)\r?\n")[1]
    version, *_ = re.findall(r"SeaBIOS \(version (\S+)\)", said.read_text(errors="replace"))
    row.against(f"QEMU {tools.qemu_version}", f"SeaBIOS {version}")
    assert found == f"crc {payloads.crc_of_start(image):08x}"
    assert payloads.written_by_boot_sector(image) == int(found[-8:], 16)
    row.tell("1 MiB read by INT 13h, its CRC-32 is right; a sector written")


@DISKS
def test_ovmf_boots_from_it(
    row: Row,
    tools: Toolbox,
    firmware: Firmware,
    tmp_path: Path,
    serve: Callable[[Device], Served],
    disk: str,
) -> None:
    """OVMF starts an EFI program from FAT"""
    row.against(f"QEMU {tools.qemu_version}", f"OVMF {firmware.version('ovmf')}")
    image = payloads.efi_disk(tools, tmp_path)
    served = serve(Device(disk, {"image": image}))
    with booted(tools, tmp_path, [served], *firmware.ovmf(tmp_path)) as serial:
        found = serial.wait_for(r"efi program: (.*)\r?\n")[1]
    assert found == f"crc {payloads.crc_of_end(image):08x}"
    assert payloads.written_by_efi_program(image) == int(found[-8:], 16)
    row.tell("1 MiB read by Block I/O, its CRC-32 is right; a block written")
