"""U-Boot drives our devices from its prompt."""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from attached import Device, serving
from bellwired.guest.toolbox import Toolbox
from interop.fetched import Firmware
from interop.hosts import GUEST, HOST, TAP, card, tftp
from interop.machines import Serial, booted
from interop.page import Row
from virtio.namespace import own_namespace

pytestmark = [pytest.mark.guest, pytest.mark.long]

SIZE = 1 << 20
BLOCKS = SIZE // 512
THERE, ELSEWHERE = BLOCKS, 3 * BLOCKS
"""The blocks that are read, and those that they are written to."""
DISK = 4 * SIZE
AT = 0x100_0000
"""Where in memory U-Boot puts what it loads."""
SLOTS = {"nvme": 0x10, "virtio-blk": 0x11, "virtio-net": 0x12}
"""U-Boot's device tree says that 00:01.0 is a bridge: it does not look for a driver there."""
IDS = {"nvme": "0x1234     0xbe5d", "virtio-blk": "0x1af4     0x1042", "virtio-net": "0x1af4     0x1041"}


@dataclass
class Prompt:
    """U-Boot's, in a machine with three devices; what it has been given to read."""

    serial: Serial
    versions: tuple[str, ...]
    folder: Path
    data: bytes
    no_network: str

    def ask(self, line: str) -> str:
        """What it says to a command."""
        self.serial.type(f"{line}\n")
        return self.serial.wait_for(rf"(?s){re.escape(line)}\r?\n(.*?)(?<=\n)=> $")[1]

    def crc(self) -> int:
        """Of what it has loaded."""
        found = re.search(r"==> ([0-9a-f]{8})", said := self.ask(f"crc32 {AT:x} {SIZE:x}"))
        assert found, said
        return int(found[1], 16)


@pytest.fixture(scope="module")
def prompt(tools: Toolbox, firmware: Firmware, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prompt]:
    folder, data, why = tmp_path_factory.mktemp("u-boot"), os.urandom(SIZE), ""
    with contextlib.ExitStack() as stack:
        options = {name: {"image": folder / name} for name in ("nvme", "virtio-blk")}
        for name in options:
            (folder / name).write_bytes((bytes(SIZE) + data).ljust(DISK, b"\0"))
        try:
            namespace = stack.enter_context(own_namespace("-u-boot"))
        except pytest.skip.Exception as reason:
            why = str(reason)
        else:
            options["virtio-net"] = card(namespace)
            stack.enter_context(tftp(namespace, {"file": data}))
        served = [
            stack.enter_context(
                serving(Device(name, options[name], {"addr": f"{SLOTS[name]:x}"}), folder / f"{name}-s")
            )
            for name in options
        ]
        if not why:
            namespace.address(TAP, HOST)
        serial = stack.enter_context(booted(tools, folder, served, "-bios", str(firmware.u_boot)))
        serial.wait_for("autoboot")
        serial.type(" ")
        serial.wait_for("=> $")
        versions = (f"QEMU {tools.qemu_version}", f"U-Boot {firmware.version('u-boot-qemu')}")
        yield Prompt(serial, versions, folder, data, why)


@pytest.fixture
def asked(row: Row, prompt: Prompt) -> Prompt:
    row.against(*prompt.versions)
    return prompt


def test_pci(row: Row, asked: Prompt) -> None:
    """pci lists the devices"""
    said = asked.ask("pci")
    for name, slot in SLOTS.items():
        if name != "virtio-net" or not asked.no_network:
            assert f"00.{slot:02x}.00   {IDS[name]}" in said
    row.tell("the IDs are right")


def check_disk(prompt: Prompt, command: str, name: str) -> None:
    """Read a MiB, sum it up, and write it elsewhere."""
    assert f"{BLOCKS} blocks read: OK" in prompt.ask(f"{command} read {AT:x} {THERE:x} {BLOCKS:x}")
    assert prompt.crc() == zlib.crc32(prompt.data)
    assert f"{BLOCKS} blocks written: OK" in prompt.ask(f"{command} write {AT:x} {ELSEWHERE:x} {BLOCKS:x}")
    assert (prompt.folder / name).read_bytes()[3 * SIZE :] == prompt.data


def test_nvme(row: Row, asked: Prompt) -> None:
    """nvme scan, info, read, write"""
    asked.ask("nvme scan")
    assert "Capacity: 4.0 MB" in asked.ask("nvme info")
    asked.ask("nvme device 0")
    check_disk(asked, "nvme", "nvme")
    row.tell("1 MiB each way, its CRC-32 is right")


def test_virtio_blk(row: Row, asked: Prompt) -> None:
    """virtio-blk: virtio scan, info, read, write"""
    asked.ask("virtio scan")
    assert "Capacity: 4.0 MB" in asked.ask("virtio info")
    asked.ask("virtio device 0")
    check_disk(asked, "virtio", "virtio-blk")
    row.tell("1 MiB each way, its CRC-32 is right")


def test_virtio_net(row: Row, asked: Prompt) -> None:
    """virtio-net: ping, and a file by TFTP"""
    if asked.no_network:
        pytest.skip(asked.no_network)
    for name, value in {"ipaddr": GUEST, "serverip": HOST, "netmask": "255.255.255.0", "autoload": "no"}.items():
        asked.ask(f"setenv {name} {value}")
    asked.ask("virtio scan")
    assert f"host {HOST} is alive" in asked.ask(f"ping {HOST}")
    assert f"Bytes transferred = {SIZE}" in asked.ask(f"tftpboot {AT:x} file")
    assert asked.crc() == zlib.crc32(asked.data)
    row.tell("1 MiB, its CRC-32 is right")
