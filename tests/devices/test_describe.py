"""What --print-capabilities says is the whole device."""

from __future__ import annotations

import json
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from bellwire import Bar, IntX, Msi, MsiX, Option, PciDevice, VendorCapability, Vsec, doorbell, reg
from bellwired.commands.describe import describe
from bellwired.find import bundled


class Flags(IntFlag):
    ON = 1
    OFF = 2


class Mode(IntEnum):
    SLOW = 0
    FAST = 1


class Whole(PciDevice, vendor=0x1234, device=0xD5C, class_code=0x088000, revision=3, subsystem=(0x1AF4, 7)):
    """Has one of each."""

    rate = Option(8, least=1, most=64, help="how fast")
    mode = Option("a", choices=("a", "b"))
    place = Option(Path("here"))

    irq = MsiX(4)
    msi = Msi(2)
    line = IntX(2)
    where = VendorCapability(b"abcd")
    debug = Vsec(0x10, size=0x10)
    level = debug.reg(0x08, size=2)

    mmio = Bar(0, size=1 << 16, bits=64, prefetchable=True, fill=0xFF)
    ports = Bar(2, size=16, io=True)
    flags = mmio.reg(0x00, Flags, access="w1c", reset=1, writable=3)
    kind = mmio.reg(0x04, Mode)
    bell = mmio.doorbell(0x08, match=7)
    told = mmio.doorbell(0x0C, value=True)
    row = mmio.ioregion(0x100, 64, posted=True, bell=4)
    queues = mmio.block(0x200, count=2, stride=0x10, base=reg(0x00, 8), tail=doorbell(0x08))
    area = mmio.area(0x1000, 0x1000)
    port = ports.reg(4)

    @bell.ring
    @told.ring
    @queues.tail.ring
    def rung(self, *_: object) -> None: ...

    @rate.set
    def set_rate(self, rate: int) -> None: ...


def test_who_it_is() -> None:
    found = describe(Whole)
    assert {word: found[word] for word in ("vendor", "device", "subsystem", "class", "revision", "express")} == {
        "vendor": "1234",
        "device": "0d5c",
        "subsystem": "1af4:0007",
        "class": "088000",
        "revision": 3,
        "express": True,
    }


def test_each_bar_with_what_lies_in_it() -> None:
    memory, ports, table = describe(Whole)["bars"]
    assert {word: memory[word] for word in memory if word != "contents"} == {
        "index": 0,
        "name": "mmio",
        "size": 1 << 16,
        "kind": "memory",
        "bits": 64,
        "prefetchable": True,
        "fill": 0xFF,
    }
    assert (ports["kind"], [item["name"] for item in ports["contents"]]) == ("io", ["port"])
    assert table["contents"][0] | {"name": ""} == {
        "name": "",
        "offset": 0,
        "size": 72,
        "kind": "MSI-X table",
        "pending_bits": 64,
    }
    contents = {item["name"]: item for item in memory["contents"]}
    assert contents["flags"] == {
        "name": "flags",
        "offset": 0,
        "size": 4,
        "kind": "register",
        "access": "w1c",
        "reset": 1,
        "writable": 3,
        "flags": {"ON": 1, "OFF": 2},
    }
    assert contents["kind"]["values"] == {"SLOW": 0, "FAST": 1}
    assert (contents["bell"]["kind"], contents["bell"]["match"], contents["bell"]["value"]) == ("doorbell", 7, False)
    assert contents["told"]["value"]
    assert (contents["row"]["posted"], contents["row"]["doorbell_size"]) == (True, 4)
    assert contents["queues[1].base"]["offset"] == 0x210
    assert contents["queues[1].tail"]["kind"] == "doorbell"
    assert contents["area"] == {"name": "area", "offset": 0x1000, "size": 0x1000, "kind": "area"}


def test_its_interrupts_and_capabilities() -> None:
    found = describe(Whole)
    assert found["interrupts"] == {
        "msix": {"vectors": 4, "bar": 5, "offset": 0},
        "msi": {"messages": 2},
        "intx": "B",
    }
    names = [each["name"] for each in found["capabilities"]]
    assert sorted(names) == ["MSI", "MSI-X", "PCI Express", "debug", "power management", "where"]
    assert [each["offset"] for each in found["capabilities"]] == sorted(
        each["offset"] for each in found["capabilities"]
    )
    debug = found["capabilities"][-1]
    assert {word: debug[word] for word in debug if word != "contents"} == {
        "id": 0x0B,
        "extended": True,
        "name": "debug",
        "kind": "vendor-specific (VSEC)",
        "version": 1,
        "offset": 0x100,
        "size": 0x10,
    }
    assert [item["name"] for item in debug["contents"]] == ["debug.vsec_header", "level"]


def test_its_options_with_what_they_can_be() -> None:
    options = describe(Whole)["options"]
    assert options["rate"] == {"type": "int", "default": 8, "help": "how fast", "least": 1, "most": 64, "live": True}
    assert options["mode"]["choices"] == ["a", "b"]
    assert (options["place"]["default"], options["place"]["live"]) == ("here", False)


@pytest.mark.parametrize("name", sorted(bundled()))
def test_all_of_it_is_json(name: str) -> None:
    assert json.loads(json.dumps(describe(bundled()[name])))["name"] == name
