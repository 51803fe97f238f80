"""What a guest has seen of a device: identity, BARs, capabilities, interrupts, doorbells. It must not change under it.

A driver reads these once, when it finds the device; a client asks for them once, when it connects. So new code may take
a device over from old code, with a client connected, only if it says the same. Each fact has a name and a text, so that
two plans can be compared, and the difference said in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bellwire.declare.bar import Area, Bar
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.layout import Layout, Placed
from bellwire.declare.vendor import HEADER
from bellwire.model import capabilities as pci
from bellwire.model.capabilities import Identity, Template

Facts = Mapping[str, str]
MOST_TOLD = 8
"""Differences that are told one by one."""


def seen(identity: Identity, layout: Layout, space: Template, rom_size: int) -> dict[str, str]:
    """All that a guest or its VMM is told of a device once. ``space`` is its config space after power-on."""
    facts = {
        "vendor id": f"{identity.vendor:#06x}",
        "device id": f"{identity.device:#06x}",
        "class code": f"{identity.class_code:#08x}",
        "revision": f"{identity.revision:#04x}",
        "subsystem": f"{identity.subsystem_vendor:#06x}:{identity.subsystem:#06x}",
        "bus": "PCI Express" if identity.express else "conventional PCI",
        "header type": f"{space.content[pci.HEADER_TYPE]:#04x}",
    }
    facts |= _interrupts(layout)
    if rom_size:
        facts["expansion ROM"] = f"{rom_size} bytes"
    for index, plan in layout.bars.items():
        facts[f"BAR {index}"] = _bar(plan.bar)
        facts |= {fact: text for item in plan.placed for fact, text in _placed(index, item)}
    facts |= _capabilities(space)
    for each in layout.extended:
        capability = each.capability
        facts[f"{capability.title} capability at {each.at:#x}"] = f"{capability.size} bytes, header {each.header:#x}"
    return facts


def differences(old: Facts, new: Facts) -> list[str]:
    """Each fact that differs, in words: what it was, and what it is."""
    found = [f"{fact} was {old[fact]} and is {new[fact]}" for fact in old if fact in new and old[fact] != new[fact]]
    found += [f"{fact} ({old[fact]}) is gone" for fact in old if fact not in new]
    found += [f"{fact} ({new[fact]}) is new" for fact in new if fact not in old]
    return found


def refusal(old: Facts, new: Facts) -> str:
    """Why a client cannot go on with the new plan, and what to do. Empty if it can."""
    found = differences(old, new)
    if not found:
        return ""
    told = "; ".join(found[:MOST_TOLD])
    more = f"; and {len(found) - MOST_TOLD} more" if len(found) > MOST_TOLD else ""
    return (
        f"the guest has seen something else: {told}{more}. "
        "Undo that, or unplug the device (or stop its VM) before the change: a driver asks for these only once"
    )


def _interrupts(layout: Layout) -> dict[str, str]:
    facts = {}
    if layout.msix is not None:
        table = layout.msix
        facts["MSI-X"] = f"{table.count} vectors, table at {table.offset:#x} of BAR {layout.msix_bar}"
    if layout.msi is not None:
        facts["MSI"] = f"{layout.msi.count} messages"
    if layout.intx is not None:
        facts["INTx"] = f"pin {layout.intx.pin}"
    return facts


def _bar(bar: Bar) -> str:
    kind = "I/O ports" if bar.io else f"bytes of {bar.bits}-bit {'prefetchable ' if bar.prefetchable else ''}memory"
    return f"{bar.size:#x} {kind}"


def _placed(index: int, item: Placed) -> Iterator[tuple[str, str]]:
    """A doorbell, an ioregion or an area. Guests know them by their places; registers may move."""
    place = f"at {item.offset:#x} of BAR {index}"
    match item:
        case Doorbell():
            rings = "" if item.accepted is None else f" for {_values(item.accepted)}"
            kind = "latest value" if item.latest else "each value" if item.with_value else "no value"
            yield f"doorbell {place}{rings}", f"{item.size} bytes, {kind}"
        case IoRegion():
            row = f", a row of {item.bell}-byte doorbells" if item.bell else ""
            manner = (", posted" if item.posted else "") + (", latest value" if item.latest else "")
            yield f"ioregion {place}", f"{item.size:#x} bytes{row}{manner}"
        case Area():
            yield f"area {place}", f"{item.size:#x} bytes"


def _values(values: range) -> str:
    return f"{values[0]:#x}" if len(values) == 1 else f"{values[0]:#x} to {values[-1]:#x}"


def _capabilities(space: Template) -> Iterator[tuple[str, str]]:
    """The capability list: what each one says after power-on, and what a guest may write there."""
    starts = sorted([*space.at.values(), *(body - HEADER for body in space.vendor.values())])
    for start, end in zip(starts, [*starts[1:], pci.CONVENTIONAL_SIZE], strict=True):
        content, writable = space.content[start:end].rstrip(b"\0"), space.writable[start:end].rstrip(b"\0")
        yield f"capability {space.content[start]:#04x} at {start:#x}", f"{content.hex()} (writable: {writable.hex()})"
