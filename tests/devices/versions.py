"""Versions of one device, as its author makes them by editing its file: another class of the same name."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from bellwire import Bar, PciDevice
from bellwire.testing import Guest

LINE = {"vendor": 0x1234, "device": 0x11, "class_code": 0xFF0000, "name": "dut"}


def version(line: Mapping[str, Any] | None = None, **body: Any) -> Any:
    """A class with these declarations. ``line`` changes its class line."""
    made: type[PciDevice] = types.new_class("Dut", (PciDevice,), {**LINE, **(line or {})}, lambda own: own.update(body))
    return made


def bar(size: int = 64, **registers: tuple[int, int] | tuple[int, int, Any]) -> dict[str, Any]:
    """A BAR with registers: each has an offset, a size, and perhaps a kind."""
    mmio = Bar(0, size=size)
    made = {name: mmio.reg(where[0], *where[2:], size=where[1]) for name, where in registers.items()}
    return {"mmio": mmio, **made}


def edited(old: Any, new: Any, *, client: bool = True, **values: Any) -> Guest[Any]:
    """A guest of ``new``, which has got the state of an ``old`` one with these ``values``."""
    with Guest(old) as before:
        for name, value in values.items():
            if isinstance(value, bytes):
                getattr(before.device, name)[: len(value)] = value
            else:
                setattr(before.device, name, value)
        snapshot = before.snapshot()
    after = Guest(new)
    try:
        after.device.core.connected = client
        after.restore(snapshot)
    except BaseException:
        after.close()
        raise
    return after
