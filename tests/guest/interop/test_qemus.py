"""QEMU's client drives our server, without a guest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from attached import Device, Served
from bellwired.guest.toolbox import Toolbox
from doorbells import until, written
from interop.page import Row
from machine import Machine
from patched import PatchedToolbox
from test_client import ADDRESS, BY_TIMER, PROBE, RAM, RESULT, STORE
from vfio_user import Command

pytestmark = [pytest.mark.guest, pytest.mark.long]

DEVICES: dict[str, tuple[int, int]] = {
    "bell": (0x1234, 0xBE11),
    "edu": (0x1234, 0x11E8),
    "nvme": (0x1234, 0xBE5D),
    "serial": (0x1B36, 0x0002),
    "virtio-blk": (0x1AF4, 0x1042),
    "virtio-console": (0x1AF4, 0x1043),
    "virtio-net": (0x1AF4, 0x1041),
    "virtio-rng": (0x1AF4, 0x1044),
}
BELLS, CONTROL, WILDCARD, COUNT = 1, 0, 0x00, 0x40
VALUE = 0x0DD_BA11


@dataclass
class Under:
    """A QEMU, and how a machine of it is made."""

    name: str
    tools: Toolbox
    drive: Callable[..., Machine]


@pytest.fixture(params=["stock", "old", "patched"])
def under(request: pytest.FixtureRequest, row: Row, tools: Toolbox, drive_with: Callable[..., Machine]) -> Under:
    chosen, name = tools, "QEMU"
    if request.param != "stock":
        patched: PatchedToolbox = request.getfixturevalue("patched_tools")
        chosen = patched if request.param == "patched" else patched.unpatched
        name = "patched QEMU" if request.param == "patched" else name
    name = f"{name} {chosen.qemu_version}"
    row.name_variant(name)
    row.against(name)
    return Under(request.param, chosen, partial(drive_with, chosen))


def options(name: str, folder: Path) -> dict[str, object]:
    chosen: dict[str, dict[str, object]] = {
        "nvme": {"size": "16M"},
        "virtio-blk": {"size": "16M"},
        "virtio-net": {"stream": folder / "far", "listen": "yes"},
        "serial": {"backend": "null"},
        "virtio-console": {"ports": "console=null"},
    }
    return chosen.get(name, {})


def test_every_device(row: Row, under: Under, tmp_path: Path, serve: Callable[[Device], Served]) -> None:
    """every bundled device in one machine"""
    served = {name: serve(Device(name, options(name, tmp_path))) for name in DEVICES}
    machine = under.drive(*served.values())
    for function, (name, (vendor, device)) in zip(machine.functions, DEVICES.items(), strict=True):
        assert function.config_read(0) == vendor | device << 16, name
        errors = [str(seen) for seen in served[name].tap.messages() if seen.error]
        assert errors == [], name
    row.tell(f"{len(DEVICES)} devices, no message refused")


def stored(under: Under, served: Served, *, shared: bool) -> Machine:
    """A machine whose device has been told to store a word in memory."""
    machine = under.drive(served, shared=shared)
    (probe,) = machine.functions
    machine.write(RAM, 0xA5A5_A5A5)
    probe.write(0, RESULT, VALUE)
    probe.write(0, ADDRESS, RAM, 8)
    probe.read(0, ADDRESS, 8)  # a ring by descriptor overtakes what the test's own tap still forwards
    probe.write(0, STORE, 1)
    return machine


def test_shared_memory(row: Row, under: Under, serve: Callable[[Device], Served]) -> None:
    """DMA in shared memory"""
    served = serve(Device(PROBE))
    machine = stored(under, served, shared=True)
    until(lambda: machine.read(RAM) == VALUE)
    assert Command.DMA_WRITE not in served.tap.commands()
    row.tell("a word stored, no message")


def test_dma_by_message(row: Row, under: Under, serve: Callable[[Device], Served]) -> None:
    """DMA by message"""
    served = serve(Device(PROBE))
    machine = stored(under, served, shared=False)
    if under.name == "stock":
        until(lambda: machine.read(RAM) == VALUE)
        (probe,) = machine.functions
        machine.write(RAM, ~VALUE & 0xFFFF_FFFF)
        probe.write(0, BY_TIMER, 1)
        until(lambda: probe.read(0, RESULT) == ~VALUE & 0xFFFF_FFFF)
        row.tell("a word stored, and another fetched")
        return
    until(lambda: "QEMU's old layout" in served.log)
    assert machine.read(RAM) == 0xA5A5_A5A5
    assert machine.functions[0].read(0, RESULT) == VALUE  # the device goes on
    row.tell("its layout is another: refused with a reason, and no byte of memory changed")


def test_rings(row: Row, under: Under, serve: Callable[[Device], Served]) -> None:
    """30 rings of a doorbell"""
    served = serve(Device("bell"))
    (function,) = under.drive(served).functions
    for _ in range(30):
        function.write(BELLS, WILDCARD, 1)
    assert function.read(CONTROL, COUNT, 8) == 30
    messages = written(served).count((BELLS, WILDCARD))
    assert messages == (0 if under.name == "patched" else 30)
    row.tell(f"30 arrive, {messages or 'none'} by message")
