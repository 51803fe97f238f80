"""An option ROM of a device's, which QEMU's firmware (SeaBIOS) runs."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import bootable
from attached import PATIENCE, Device, Served
from bellwired.guest.board import memory
from bellwired.guest.toolbox import Toolbox
from machine import Machine
from qemu import attach, qemu
from vfio_user import Command, RegionIndex

pytestmark = pytest.mark.guest


def test_seabios_runs_the_rom_of_a_device(tools: Toolbox, tmp_path: Path, serve: Callable[[Device], Served]) -> None:
    rom = bootable.write(tmp_path / "card.rom")
    served = serve(Device(bootable.__file__, options={"firmware": rom}))
    said = tmp_path / "said"
    words = ["-accel", "tcg", *memory(64, shared=True), *attach([served])]
    words += ["-chardev", f"file,id=said,path={said}", "-device", "isa-debugcon,iobase=0x402,chardev=said"]
    with qemu(tools, tmp_path, *words) as process:
        deadline = time.monotonic() + PATIENCE
        while not (said.exists() and bootable.TEXT in said.read_bytes()):
            assert time.monotonic() < deadline, said.read_text(errors="replace")
            assert process.poll() is None
            select.select([], [], [], 0.02)
    reads = [seen for seen in served.tap.messages() if seen.command == Command.REGION_READ and seen.to_server]
    assert [seen for seen in reads if int.from_bytes(seen.start[8:12], "little") == RegionIndex.ROM]


ROM = 0x30
WINDOW = 0xE800_0000


def test_qemu_shows_a_rom_of_one_mebibyte_and_no_larger_one(
    drive: Callable[..., Machine], tmp_path: Path, serve: Callable[[Device], Served]
) -> None:
    seen = []
    for name, size in (("one", 1 << 20), ("two", 2 << 20)):
        rom = bootable.write(tmp_path / f"{name}.rom", size)
        seen.append(serve(Device(bootable.__file__, options={"firmware": rom})))
    machine = drive(*seen)
    for function, size, found in zip(machine.functions, (1 << 20, 2 << 20), (0xAA55, 0xFFFF), strict=True):
        function.config_write(ROM, 0xFFFF_F800)
        assert function.config_read(ROM) == -size & 0xFFFF_F800
        function.config_write(ROM, WINDOW | 1)
        assert machine.read(WINDOW, 2) == found
        function.config_write(ROM, 0)
