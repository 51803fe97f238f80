"""The numbers of a register map under the names that a driver gives them. Headers for C and for Rust have the same.

Names are in upper case and joined by underscores: ``STATUS`` is the offset of the register ``status``, ``STATUS_DONE``
the mask of its bit ``DONE``. If two declarations give the same name, the later one gets an underscore at its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bellwired.maps import register_map as maps


@dataclass(frozen=True, slots=True)
class Heading:
    """The text of a comment that begins a part."""

    text: str


@dataclass(frozen=True, slots=True)
class Constant:
    """A number of ``bits`` bits (16, 32 or 64), shown with ``digits`` hexadecimal digits, or in decimal if 0."""

    name: str
    number: int
    bits: int = 32
    digits: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """The offset of row ``n`` of something that repeats: ``number + n * stride``, with ``n`` below ``count``."""

    name: str
    number: int
    stride: int
    count: int
    text: str = ""

    @property
    def bits(self) -> int:
        """32 or 64: what the offset of the last row takes."""
        return 64 if (self.number + self.count * self.stride) >> 32 else 32


Line = Heading | Constant | Place


def constants(device: maps.Map) -> list[Line]:
    """All numbers of a device, in the order of its map."""
    taken: set[str] = set()
    found: list[Line] = []
    for line in _device(device):
        if isinstance(line, Heading):
            found.append(line)
            continue
        name = line.name.upper()
        while name in taken:
            name += "_"
        taken.add(name)
        if isinstance(line, Place):
            found.append(Place(name, line.number, line.stride, line.count, line.text))
        else:
            bits = 64 if line.number >> 32 else line.bits
            found.append(Constant(name, line.number, bits, line.digits, line.text))
    return found


def _device(device: maps.Map) -> Iterator[Line]:
    yield Heading("identity")
    yield Constant("VENDOR_ID", device.vendor, 16, 4)
    yield Constant("DEVICE_ID", device.device, 16, 4)
    yield Constant("SUBSYSTEM_VENDOR_ID", device.subsystem_vendor, 16, 4)
    yield Constant("SUBSYSTEM_ID", device.subsystem, 16, 4)
    yield Constant("CLASS_CODE", device.class_code, 32, 6)
    yield Constant("REVISION", device.revision, 32, 2)
    if device.msix or device.msi or device.intx:
        yield Heading("interrupts")
    if device.msix is not None:
        yield Constant("MSIX_VECTORS", device.msix.count)
    if device.msi:
        yield Constant("MSI_VECTORS", device.msi)
    if device.intx:
        yield Constant("INTX_PIN", device.intx, text=f"INT{'ABCD'[device.intx - 1]}")
    for bar in device.bars:
        ports = "ports" if bar.kind == "io" else "bytes of memory"
        yield Heading(f"BAR {bar.index}, {bar.name}: {bar.size:#x} {ports}{_about(bar.description)}")
        yield Constant(f"{bar.name}_BAR", bar.index)
        yield Constant(f"{bar.name}_BAR_SIZE", bar.size, 64, 1)
        for item in bar.items:
            yield from _item(item)


def _item(item: maps.Item) -> Iterator[Line]:
    yield Heading(f"{item.name}: {says(item)}{_about(item.description)}")
    match item:
        case maps.Block():
            yield Constant(item.name, item.offset, digits=3)
            yield Constant(f"{item.name}_COUNT", item.count)
            yield Constant(f"{item.name}_STRIDE", item.stride, digits=1)
            for member in item.members:
                name = f"{item.name}_{member.name}"
                text = says(member) + _about(member.description)
                yield Place(name, item.offset + member.offset, item.stride, item.count, text)
                yield from _inside(name, member)
        case maps.Area():
            yield Constant(item.name, item.offset, digits=3)
            yield Constant(f"{item.name}_SIZE", item.size, digits=1)
        case maps.Range():
            yield Constant(item.name, item.offset, digits=3)
            yield Constant(f"{item.name}_SIZE", item.size, digits=1)
            if item.bell:
                yield Place(f"{item.name}_BELL", item.offset, item.bell, item.size // item.bell, "one of the doorbells")
        case _:
            yield Constant(item.name, item.offset, digits=3)
            yield from _inside(item.name, item)


def _inside(name: str, item: maps.Register | maps.Doorbell) -> Iterator[Line]:
    bits = 64 if item.size > 4 else 32
    if isinstance(item, maps.Doorbell):
        if item.match is not None:
            yield Constant(f"{name}_MATCH", item.match, bits, 1, "the value that rings")
        return
    yield Constant(f"{name}_RESET_VALUE", item.reset, bits, 2 * item.size)
    for field in item.fields:
        if field.width == 1:
            yield Constant(f"{name}_{field.name}", field.mask, bits, 2 * item.size, field.description)
            continue
        yield Constant(f"{name}_{field.name}_MASK", field.mask, bits, 2 * item.size, field.description)
        yield Constant(f"{name}_{field.name}_SHIFT", field.low)
        for value in field.values:
            yield Constant(f"{name}_{field.name}_{value.name}", value.number, bits, text=value.description)
    for mask in item.masks:
        yield Constant(f"{name}_{mask.name}", mask.number, bits, 2 * item.size, mask.description)
    for value in item.values:
        yield Constant(f"{name}_{value.name}", value.number, bits, 1, value.description)


def says(item: maps.Item) -> str:
    """What an item is, in a few words."""
    match item:
        case maps.Register():
            return f"{_bytes(item.size)}, {item.access}"
        case maps.Doorbell(match=None):
            return f"doorbell of {_bytes(item.size)}{', its value counts' if item.value else ''}"
        case maps.Doorbell():
            return f"doorbell of {_bytes(item.size)}, rung by {item.match:#x}"
        case maps.Range(bell=0):
            return f"{_bytes(item.size)} behind hooks"
        case maps.Range():
            return f"{item.size // item.bell} doorbells of {_bytes(item.bell)}"
        case maps.Area():
            return f"{_bytes(item.size)} of memory"
        case maps.Block():
            return f"{item.count} rows, {item.stride:#x} bytes apart"


def _bytes(size: int) -> str:
    return "1 byte" if size == 1 else f"{size:#x} bytes" if size > 64 else f"{size} bytes"


def _about(text: str) -> str:
    return f": {text}" if text else ""
