"""The description of a device class that ``bellwire run DEVICE --print-capabilities`` prints."""

from __future__ import annotations

from enum import IntFlag
from pathlib import Path
from typing import Any

from bellwire import Area, Doorbell, IoRegion, MsiX, Option, PciDevice, Register
from bellwire.declare.functions import functions_of
from bellwire.declare.layout import BarLayout, Layout, Placed
from bellwire.declare.rom_image import images
from bellwire.declare.vendor import HEADER
from bellwire.model import capabilities as pci

_CAPABILITIES = {
    pci.POWER_MANAGEMENT: "power management",
    pci.MSI: "MSI",
    pci.MSIX: "MSI-X",
    pci.EXPRESS: "PCI Express",
}


def describe(device: type[PciDevice]) -> dict[str, Any]:
    """The whole description, for JSON. Numbers are numbers; only IDs are hexadecimal text, as ``lspci`` prints them."""
    identity, layout = device.identity, device.layout
    assert identity is not None  # find_device() gives complete devices only
    return {
        "type": "pci",
        "name": device.name,
        "description": (device.__doc__ or "").strip().partition("\n")[0],
        "vendor": f"{identity.vendor:04x}",
        "device": f"{identity.device:04x}",
        "subsystem": f"{identity.subsystem_vendor:04x}:{identity.subsystem:04x}",
        "class": f"{identity.class_code:06x}",
        "revision": identity.revision,
        "express": identity.express,
        "functions": [each.name for each in functions_of(device)],
        "bars": [_bar(plan) for plan in layout.bars.values()],
        "interrupts": _interrupts(layout),
        "rom": _rom(layout),
        "capabilities": _capabilities(device),
        "options": {name: _option(device, option) for name, option in sorted(layout.options.items())},
    }


def _bar(plan: BarLayout) -> dict[str, Any]:
    bar = plan.bar
    return {
        "index": bar.index,
        "name": bar.name,
        "size": bar.size,
        "kind": "io" if bar.io else "memory",
        "bits": bar.bits,
        "prefetchable": bar.prefetchable,
        "fill": bar.fill,
        "contents": [_placed(item) for item in plan.placed],
    }


def _placed(item: Placed) -> dict[str, Any]:
    found: dict[str, Any] = {"name": item.name, "offset": item.offset, "size": item.size}
    match item:
        case Register():
            found |= {"kind": "register", "access": item.access_word, "reset": item.reset, "writable": item.writable}
            if item.kind is not None:
                word = "flags" if issubclass(item.kind, IntFlag) else "values"
                found[word] = {name: int(member) for name, member in item.kind.__members__.items()}
        case Doorbell():
            found |= {"kind": "doorbell", "match": item.match, "value": item.value}
            if item.latest:
                found["latest"] = True
            if item.values is not None:
                found["values"] = list(item.values)
        case IoRegion():
            found |= {"kind": "ioregion", "posted": item.posted, "doorbell_size": item.bell}
            if item.latest:
                found["latest"] = True
        case Area():
            found["kind"] = "area"
        case MsiX():
            found |= {"kind": "MSI-X table", "pending_bits": item.offset + item.pba_offset}
    return found


def _interrupts(layout: Layout) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if layout.msix is not None:
        found["msix"] = {"vectors": layout.msix.count, "bar": layout.msix_bar, "offset": layout.msix.offset}
    if layout.msi is not None:
        found["msi"] = {"messages": layout.msi.count}
    if layout.intx is not None:
        found["intx"] = "ABCD"[layout.intx.pin - 1]
    return found


def _rom(layout: Layout) -> dict[str, Any] | None:
    """The expansion ROM. Where an option names the file, only the option's name is known."""
    rom = layout.rom
    if rom is None:
        return None
    if isinstance(rom.source, Option):
        return {"name": rom.name, "option": rom.source.name}
    content = rom.content({}, 0, 0)
    found = [{"offset": each.offset, "size": each.size, "code_type": each.code_type} for each in images(content)]
    return {"name": rom.name, "size": len(content), "images": found}


def _capabilities(device: type[PciDevice]) -> list[dict[str, Any]]:
    """The capabilities in the order of their lists, first those below 100h. ``offset`` is the start in config space."""
    assert device.identity is not None
    space = pci.template(device.identity, device.layout)
    found: list[dict[str, Any]] = [
        {"id": number, "name": _CAPABILITIES[number], "offset": at} for number, at in space.at.items()
    ]
    for capability, body in space.vendor.items():
        found.append({"id": pci.VENDOR, "name": capability.name, "offset": body - HEADER, "size": capability.size})
    found.sort(key=lambda each: int(each["offset"]))
    return found + [
        {
            "id": each.capability.number,
            "extended": True,
            "name": each.capability.name,
            "kind": each.capability.title,
            "version": each.capability.version,
            "offset": each.at,
            "size": each.capability.size,
            "contents": [_placed(item) for item in each.placed],
        }
        for each in device.layout.extended
    ]


def _option(device: type[PciDevice], option: Option[Any]) -> dict[str, Any]:
    found = {"type": option.type_name, "default": _plain(option.default), "help": option.help}
    found |= {word: bound for word in ("least", "most") if (bound := getattr(option, word)) is not None}
    if option.choices:
        found["choices"] = [_plain(choice) for choice in option.choices]
    return found | {"live": ("set", option) in device.layout.hooks}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
