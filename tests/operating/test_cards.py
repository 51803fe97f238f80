"""A card of two functions under the daemon: a device's file, a worker and a box for each, and a ROM beside the code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwire.testing import option_rom
from operating.instance import PATIENCE, Instance
from vfio_user import Client, RegionIndex

Run = Callable[..., tuple[int, str, str]]
CARD = """
from bellwire import Bar, PciDevice, Rom

class Engine(PciDevice, vendor=0x1234, device=0xF0, class_code=0x088000):
    mmio = Bar(0, size=4096)

class Console(PciDevice, vendor=0x1234, device=0xF1, class_code=0x078000):
    mmio = Bar(0, size=4096)
    boot = Rom("card.rom")

functions = [Engine, Console]
"""
IMAGE = option_rom(b"\xcb", vendor=0x1234, device=0xF1)


@pytest.fixture
def sockets(daemon: Instance) -> Iterator[list[Path]]:
    rom = daemon.plugins / "card.rom"
    rom.write_bytes(IMAGE)
    (daemon.plugins / "card.py").write_text(CARD)
    yield [daemon.configure(f"card.{number}", f'device = "card:{number}"') for number in (0, 1)]
    rom.unlink()


def test_each_function_has_a_worker_and_the_rom_is_read_in_its_box(
    daemon: Instance, run: Run, sockets: list[Path]
) -> None:
    daemon.reload()
    for number, path in enumerate(sockets):
        with Client.connect(path, timeout=PATIENCE) as client:
            assert client.read(RegionIndex.CONFIG, 0, 4) == bytes((0x34, 0x12, 0xF0 + number, 0))
            assert client.read(RegionIndex.CONFIG, 0x0E, 1) == b"\x80"
            size = client.region_info(RegionIndex.ROM)[0].size
            assert client.read(RegionIndex.ROM, 0, size) == IMAGE.ljust(2048, b"\xff") if number else size == 0
    status, line, _ = run("qemu-args", "card.0", "card.1", "--slot", "0x10")
    assert status == 0
    for number, path in enumerate(sockets):
        assert f'"path":"{path}","type":"unix"}},"addr":"10.{number}","multifunction":true' in line


def test_a_rom_that_has_changed_is_told_as_changed_code(daemon: Instance, run: Run, sockets: list[Path]) -> None:
    daemon.reload()
    Client.connect(sockets[1], timeout=PATIENCE).close()
    assert "changed since" not in run("status", "card.1")[1]
    (daemon.plugins / "card.rom").write_bytes(IMAGE + bytes(512))
    assert "changed since its worker started" in run("status", "card.1")[1]


def test_a_file_that_names_all_functions_is_refused_with_what_to_say(daemon: Instance, sockets: list[Path]) -> None:
    for path in daemon.devices.glob("card.*"):
        path.unlink()
    daemon.configure("card", 'device = "card"')
    daemon.reload()
    assert "has 2 functions, each with a socket of its own" in daemon.said("card: ")


def test_a_slot_takes_eight_functions(run: Run) -> None:
    status, _, error = run("qemu-args", *["steady"] * 9, "--slot", "1")
    assert (status, "a slot has 8 functions, and these are 9 devices" in error) == (1, True)


@pytest.mark.parametrize("slot", ["32", "-1", "x"])
def test_a_slot_that_no_bus_has_is_refused(run: Run, slot: str) -> None:
    with pytest.raises(SystemExit):
        run("qemu-args", "steady", f"--slot={slot}")
