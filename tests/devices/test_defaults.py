"""What a declaration or a call means where its author says nothing: the reference in the docs has the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from bellwire import Aer, Ats, Bar, Doe, Dvsec, IntX, Link, Msi, MsiX, Pasid, PortType, Power, Rom, Vsec, doorbell, reg
from bellwire.model.dma import Dma
from bellwire.pci.error_reporting import ErrorReporting
from bellwire.storage.disk import Disk
from bellwire.storage.memory import MemoryDisk

DEFAULTS: dict[Callable[..., Any], dict[str, object]] = {
    Bar: {"io": False, "bits": 32, "prefetchable": False, "fill": 0},
    Bar.reg: {"size": 4, "reset": 0},
    Bar.doorbell: {"size": 4, "value": False, "latest": False},
    Bar.ioregion: {"posted": False, "bell": 0, "latest": False},
    reg: {"size": 4},
    doorbell: {"size": 4, "value": False, "latest": False},
    Vsec.reg: {"size": 4, "reset": 0, "sticky": False},
    MsiX: {"offset": 0},
    Msi: {"count": 1},
    IntX: {"pin": 1},
    Link: {"width": 1, "port": PortType.ENDPOINT, "slot_clock": False},
    Power: {"d1": False, "d2": False},
    Rom: {"size": 0},
    Doe: {"largest": 4096},
    Aer: {"ecrc": False},
    Ats: {"queue_depth": 32, "page_aligned": True},
    Pasid: {"bits": 20, "execute": False, "privileged": False},
    Vsec: {"revision": 0},
    Dvsec: {"revision": 0},
    ErrorReporting.report: {"advisory": False, "stop_client": False},
    Dma.map: {"write": False},
    Dma.whole: {"write": False},
    Dma.shared_map: {"write": False},
    Disk.open: {"readonly": False, "size": 0, "direct": False, "block": 512, "folder": -1, "lock": True},
    Disk.resize: {"block": 512, "shrink": False},
    Disk.write: {"durable": False},
    Disk.zero: {"release": False},
    MemoryDisk: {"block": 512, "file": -1},
    MemoryDisk.resize: {"block": 512, "shrink": False},
    MemoryDisk.write: {"durable": False},
    MemoryDisk.zero: {"release": False},
}


@pytest.mark.parametrize("call", DEFAULTS, ids=lambda call: call.__qualname__)
def test_numbers_and_switches_that_are_left_out(call: Callable[..., Any]) -> None:
    parameters = inspect.signature(call).parameters.values()
    assert {each.name: each.default for each in parameters if isinstance(each.default, int)} == DEFAULTS[call]
