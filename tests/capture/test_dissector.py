"""A real tshark takes every command of the protocol apart, field by field, and finds nothing malformed."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bellwire import Bar, PciDevice
from bellwire.capture.capture import Capture
from capture.tshark import Tshark
from vfio_user import Command
from vfio_user.constants import MessageFlags

pytestmark = pytest.mark.slow

REPLY, NO_REPLY, ERROR = int(MessageFlags.REPLY), int(MessageFlags.NO_REPLY), int(MessageFlags.ERROR)
BAD = "_ws.malformed or _ws.lua.error or vfio_user.short or vfio_user.unequal or vfio_user.orphan or bellwire.short"


class Thing(PciDevice, vendor=0x1234, device=1, class_code=0x088000):
    """Has names for the dissector."""

    mmio = Bar(0, size=4096)
    status = mmio.reg(0x10)
    wide = mmio.reg(0x18, size=8)


def access(offset: int, region: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<QII", offset, region, count) + data


def dma(address: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<QQ", address, count) + data


def info(flags: int, *areas: tuple[int, int]) -> bytes:
    caps = struct.pack("<HHIII", 1, 1, 0, len(areas), 0) + b"".join(struct.pack("<QQ", *each) for each in areas)
    head = struct.pack("<4IQQ", 32 + len(caps), flags, 2, 32 if areas else 0, 0x4000, 0)
    return head + (caps if areas else b"")


def entry(stride: int, kind: int, flags: int, value: int) -> bytes:
    head = struct.pack("<QQIII", 0x20, 4, 0, kind, flags)
    if stride == 40 or kind == 1:
        return head + struct.pack("<IQ", 0, value) + bytes(stride - 40)
    return head + struct.pack("<IQQ", 1, 64, value)


def io_fds(stride: int, *entries: tuple[int, int, int]) -> bytes:
    found = b"".join(entry(stride, *each) for each in entries)
    return struct.pack("<4I", 16 + len(found), 0, 2, len(entries)) + found


Exchange = tuple[Command, bytes, bytes, int, int]
VERSION = b'\0\0\2\0{"capabilities": {"max_msg_fds": 16}}\0'
UNMAP = struct.pack("<IIQQ", 24, 2, 0, 0)
STATE = struct.pack("<IIII", 16, 2 | 2 << 16, 3, 0)
LOGGING = struct.pack("<IIQIIQQ", 40, 6 | 2 << 16, 4096, 1, 0, 8192, 4096)
EXCHANGES: dict[str, Exchange] = {
    "version": (Command.VERSION, VERSION, VERSION, 0, 0),
    "map": (Command.DMA_MAP, struct.pack("<IIQQQ", 32, 7, 0x2000, 0x1_0000_0000, 0x10000), b"", 1, 0),
    "unmap": (Command.DMA_UNMAP, UNMAP, UNMAP, 0, 0),
    "info": (Command.DEVICE_GET_INFO, struct.pack("<4I", 16, 0, 0, 0), struct.pack("<4I", 16, 3, 9, 5), 0, 0),
    "region": (Command.DEVICE_GET_REGION_INFO, info(0), info(15, (4096, 4096), (12288, 4096)), 0, 1),
    "type": (
        Command.DEVICE_GET_REGION_INFO,
        info(0),
        struct.pack("<4IQQ", 48, 9, 2, 32, 64, 0) + struct.pack("<HHIII", 2, 1, 0, 77, 88),
        0,
        0,
    ),
    "io_fds": (Command.DEVICE_GET_REGION_IO_FDS, io_fds(40), io_fds(40, (0, 1, 0xAB), (1, 2, 0xCD)), 0, 2),
    "shadow": (Command.DEVICE_GET_REGION_IO_FDS, io_fds(48), io_fds(48, (2, 0, 0), (1, 2, 0xEF)), 0, 3),
    "irq": (Command.DEVICE_GET_IRQ_INFO, struct.pack("<4I", 16, 0, 2, 0), struct.pack("<4I", 16, 9, 2, 65), 0, 0),
    "set": (Command.DEVICE_SET_IRQS, struct.pack("<5I", 20, 36, 2, 3, 4), b"", 4, 0),
    "bools": (Command.DEVICE_SET_IRQS, struct.pack("<5I", 22, 10, 1, 0, 2) + b"\1\0", b"", 0, 0),
    "read": (Command.REGION_READ, access(0x10, 0, 4), access(0x10, 0, 4, b"\1\2\3\4"), 0, 0),
    "write": (Command.REGION_WRITE, access(0x1C, 0, 4, b"ring"), access(0x1C, 0, 4), 0, 0),
    "dma_read": (Command.DMA_READ, dma(0xFEE0_0000, 8), dma(0xFEE0_0000, 8, bytes(7) + b"\x80"), 0, 0),
    "dma_write": (Command.DMA_WRITE, dma(1 << 63, 3, b"abc"), dma(1 << 63, 3), 0, 0),
    "reset": (Command.DEVICE_RESET, b"", b"", 0, 0),
    "multi": (
        Command.REGION_WRITE_MULTI,
        struct.pack("<Q", 2) + access(0x10, 0, 4, b"bell\0\0\0\0") + access(4, 7, 2, b"\6" + bytes(7)),
        struct.pack("<Q", 2),
        0,
        0,
    ),
    "feature": (Command.DEVICE_FEATURE, struct.pack("<II", 16, 1 | 1 << 16), struct.pack("<IIQ", 16, 1, 5), 0, 0),
    "state": (Command.DEVICE_FEATURE, STATE, STATE, 0, 0),
    "logging": (Command.DEVICE_FEATURE, LOGGING, LOGGING, 0, 0),
    "report": (
        Command.DEVICE_FEATURE,
        struct.pack("<IIQQQ", 40, 8 | 1 << 16, 8192, 4096, 4096),
        struct.pack("<IIQQQQ", 40, 8 | 1 << 16, 8192, 4096, 4096, 1),
        0,
        0,
    ),
    "migrate": (Command.MIG_DATA_READ, struct.pack("<II", 16, 3), struct.pack("<II", 11, 3) + b"abc", 0, 0),
    "restore": (Command.MIG_DATA_WRITE, struct.pack("<II", 11, 3) + b"abc", b"", 0, 0),
}


def message(number: int, command: int, flags: int, payload: bytes, error: int = 0) -> bytes:
    return struct.pack("<HHIII", number, command, 16 + len(payload), flags, error) + payload


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every exchange, a posted write, a refusal, and a command of no known number."""
    path = tmp_path_factory.mktemp("all") / "all.pcapng"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    capture = Capture("thing", Thing.layout, [fd], 1 << 20)
    for number, (command, asked, answered, fds, back) in enumerate(EXCHANGES.values(), 1):
        ways = (capture.received, capture.sent)
        if command in (Command.DMA_READ, Command.DMA_WRITE):
            ways = (capture.sent, capture.received)
        ways[0]((message(number, command, 0, asked),), fds)
        ways[1]((message(number, command, REPLY, answered),), back)
    capture.received((message(100, Command.REGION_WRITE, NO_REPLY, access(0x18, 0, 8, bytes(8))),), 0)
    capture.received((message(101, Command.REGION_READ, 0, access(0x900, 0, 4)),), 0)
    capture.sent((message(101, Command.REGION_READ, REPLY | ERROR, b"", 22),), 0)
    capture.received((message(102, 14, 0, b"what?"),), 0)
    capture.files.close()
    return path


@pytest.fixture(scope="module")
def layers(capture: Path, tshark: Tshark, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What tshark makes of each message of the capture, as its JSON has it."""
    found = tshark.packets(capture, tmp_path_factory.mktemp("home"))
    return [each["_source"]["layers"]["vfio-user"] for each in found[1:]]


def exchange(layers: list[dict[str, Any]], name: str) -> Sequence[dict[str, Any]]:
    at = 2 * list(EXCHANGES).index(name)
    return layers[at : at + 2]


def inside(layer: object) -> Iterator[tuple[str, str]]:
    """All fields, however deep, with their values."""
    if isinstance(layer, dict):
        for key, value in layer.items():
            many = value if isinstance(value, list) else [value]
            yield from ((key, each) for each in many if isinstance(each, str))
            yield from inside(value)
    elif isinstance(layer, list):
        for each in layer:
            yield from inside(each)


def values(layer: dict[str, Any], name: str) -> list[int | str]:
    found = [value for key, value in inside(layer) if key == f"vfio_user.{name}"]
    return [int(each, 0) if re.fullmatch("0x[0-9a-f]+|[0-9]+", each) else each for each in found]


def test_nothing_is_malformed(capture: Path, tshark: Tshark, tmp_path: Path) -> None:
    assert tshark.run("-r", capture, "-Y", BAD, home=tmp_path) == ""


def test_every_command_has_a_name_and_its_reply_is_found(layers: list[dict[str, Any]]) -> None:
    for at, (command, *_) in enumerate(EXCHANGES.values()):
        asked, answered = layers[2 * at : 2 * at + 2]
        assert values(asked, "command") == values(answered, "command") == [command]
        frame = 2 * at + 2
        assert values(asked, "reply_in") == [frame + 1]
        assert values(answered, "command_in") == [frame]
        assert len(values(answered, "time")) == 1


@pytest.mark.parametrize(
    ("name", "reply", "expected"),
    [
        ("version", False, {"version.major": [0], "version.minor": [2], "sender": [0]}),
        (
            "map",
            False,
            {"dma.address": [1 << 32], "dma.size": [65536], "dma.offset": [8192], "fds": [1], "argsz": [32]},
        ),
        ("map", False, {"dma_map.flags.read": [1], "dma_map.flags.mmap": [1], "dma_map.flags.file": [0]}),
        ("unmap", True, {"dma_unmap.flags.all": [1], "dma_unmap.flags.bitmap": [0], "dma.size": [0]}),
        ("info", True, {"info.regions": [9], "info.irqs": [5], "info.flags.reset": [1], "info.flags.pci": [1]}),
        ("region", True, {"region": [2], "region_info.size": [0x4000], "cap.id": [1], "cap.areas": [2], "fds": [1]}),
        ("region", True, {"area.offset": [4096, 12288], "area.size": [4096, 4096], "region_info.flags.caps": [1]}),
        ("type", True, {"cap.id": [2], "cap.type": [77], "cap.subtype": [88], "cap.version": [1]}),
        ("io_fds", True, {"io_fd.type": [0, 1], "io_fd.datamatch": [0xAB], "io_fd.user_data": [0xCD], "fds": [2]}),
        ("io_fds", True, {"io_fd.offset": [32, 32], "io_fd.size": [4, 4], "io_fd.region_flags.posted": [1]}),
        ("shadow", True, {"io_fd.type": [2, 1], "io_fd.shadow_offset": [64], "io_fd.shadow_fd_index": [1]}),
        ("irq", True, {"irq": [2], "count": [65], "irq_info.flags.eventfd": [1], "irq_info.flags.noresize": [1]}),
        ("set", False, {"irq": [2], "set_irqs.start": [3], "count": [4], "set_irqs.flags.trigger": [1], "fds": [4]}),
        ("bools", False, {"data": ["01:00"], "set_irqs.flags.bool": [1], "set_irqs.flags.mask": [1]}),
        ("read", False, {"offset": [16], "region": [0], "count": [4], "register": ["status"], "data": []}),
        ("read", True, {"data": ["01:02:03:04"], "value": [0x04030201], "register": ["status"], "sender": [1]}),
        ("write", False, {"offset": [0x1C], "register": ["wide+0x4"], "value": [0x676E6972]}),
        ("dma_read", False, {"dma.address": [0xFEE00000], "dma.count": [8], "sender": [1]}),
        ("dma_read", True, {"value": [1 << 63], "sender": [0]}),
        ("dma_write", False, {"dma.address": [1 << 63], "dma.count": [3], "data": ["61:62:63"]}),
        ("multi", False, {"write_multi.count": [2], "offset": [16, 4], "register": ["status"], "count": [4, 2]}),
        ("multi", True, {"write_multi.count": [2]}),
        ("feature", True, {"feature.number": [1], "migration.flags": [5]}),
        ("state", False, {"feature.number": [2], "feature.flags.set": [1], "migration.state": [3]}),
        ("logging", True, {"logging.page_size": [4096], "logging.ranges": [1], "logging.address": [8192]}),
        ("report", True, {"logging.size": [4096], "value": [1]}),
        ("migrate", True, {"migration.size": [3], "data": ["61:62:63"]}),
        ("restore", False, {"argsz": [11], "migration.size": [3]}),
    ],
)
def test_the_fields_of_messages(
    layers: list[dict[str, Any]], name: str, reply: bool, expected: dict[str, list[int | str]]
) -> None:
    layer = exchange(layers, name)[reply]
    assert {field: values(layer, field) for field in expected} == expected


def test_the_capabilities_of_version_are_shown(layers: list[dict[str, Any]]) -> None:
    assert values(exchange(layers, "version")[0], "version.json") == ['{"capabilities": {"max_msg_fds": 16}}']


def test_a_posted_write_waits_for_no_reply(layers: list[dict[str, Any]]) -> None:
    posted = layers[-4]
    assert (values(posted, "flags.no_reply"), values(posted, "reply_in")) == ([1], [])
    assert values(posted, "register") == ["wide"]


def test_a_refusal_is_marked_and_names_the_error(
    layers: list[dict[str, Any]], capture: Path, tshark: Tshark, tmp_path: Path
) -> None:
    assert values(layers[-2], "error") == [22]
    lines = tshark.run("-r", capture, "-Y", "vfio_user.refused", home=tmp_path)
    assert "REGION_READ reply: EINVAL" in lines
    assert len(lines.splitlines()) == 1


def test_an_unknown_command_is_shown_with_its_bytes(layers: list[dict[str, Any]]) -> None:
    assert values(layers[-1], "data") == [b"what?".hex(":")]


def test_damage_is_marked(tshark: Tshark, tmp_path: Path) -> None:
    path = tmp_path / "bad.pcapng"
    capture = Capture("thing", Thing.layout, [os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)], 1 << 20)
    whole = [message(1, command, 0, asked) for command, asked, *_ in EXCHANGES.values() if asked]
    for each in whole:
        capture.received((each[:-1],), 0)
    capture.sent((message(9, Command.REGION_READ, REPLY, access(0, 0, 8, bytes(4))),), 0)
    capture.files.close()
    found = tshark.packets(path, tmp_path, "vfio_user.short or vfio_user.unequal")
    assert len(found) == len(whole) + 1
    assert tshark.run("-r", path, "-Y", "_ws.lua.error", "-V", home=tmp_path) == ""


def test_install_puts_the_dissector_where_tshark_finds_it(capture: Path, tshark: Tshark, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("XDG_DATA_HOME", None)
    words = [sys.executable, "-m", "bellwired", "install", "--user"]
    subprocess.run(words, env=environment, check=True, capture_output=True, timeout=60)
    found = tshark.run("-r", capture, "-Y", "vfio_user.command == 9", home=tmp_path, script=None)
    assert "REGION_READ status (BAR0+0x10), 4 bytes" in found
