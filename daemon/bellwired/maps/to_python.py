"""The declarations of a device file: enumerations, rows of blocks, and a class with registers and no behaviour."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from bellwired.maps import register_map as maps
from bellwired.maps.names import Names, camel, class_of_values

WIDTH = 120


class Declarations:
    """What is declared for a map. Names of classes are settled when it is made."""

    def __init__(self, device: maps.Map) -> None:
        self.device = device
        self.base = f"{camel(device.name)}Registers"
        self._classes: dict[str, tuple[str, ...]] = {}
        self._named: dict[int, str] = {}
        taken = {self.base, camel(device.name), *_IMPORTED}
        self._rows: dict[int, str] = {}
        items = [item for bar in device.bars for item in bar.items]
        names = {bar.name for bar in device.bars} | {item.name for item in items}
        for item in items:
            members = item.members if isinstance(item, maps.Block) else (item,)
            body = {member.name for member in members} if isinstance(item, maps.Block) else names
            for register in members:
                if isinstance(register, maps.Register) and register.content != maps.PLAIN:
                    self._named[id(register)] = self._settle(register, taken, body - {register.name})
        for item in items:
            if isinstance(item, maps.Block):
                name = camel(item.name)
                while name in taken or name in names - {item.name}:
                    name += "Row"
                taken.add(name)
                self._rows[id(item)] = name

    def _settle(self, register: maps.Register, taken: set[str], body: set[str]) -> str:
        """The class for a register's content: one that is there already if it is the same.

        ``body`` are the names that are declared beside the register: they would hide a class of this name.
        """
        name = register.kind
        while True:
            lines = tuple(_enumeration(name, register))
            made = {name} | {class_of_values(name, field.name) for field in register.fields if field.values}
            if name not in body:
                if self._classes.get(name) == lines:
                    return name
                if not made & taken:
                    break
            name += "_"
        taken |= made
        self._classes[name] = lines
        return name

    def lines(self) -> Iterator[str]:
        """The text, line by line; it begins with its imports."""
        kinds = sorted({"IntFlag" if register.content == maps.FLAGS else "IntEnum" for register in self._holding()})
        if any(field.values for register in self._holding() for field in register.fields):
            kinds = ["IntEnum", "IntFlag"]
        if kinds:
            yield from (f"from enum import {', '.join(kinds)}", "")
        yield from (f"from bellwire import {', '.join(self._imports())}", "")
        for lines in self._classes.values():
            yield from ("", *lines, "")
        for bar in self.device.bars:
            for item in bar.items:
                if isinstance(item, maps.Block):
                    yield from ("", *self._row(item), "")
        yield from ("", *self._class())

    def _holding(self) -> Iterator[maps.Register]:
        return (register for register in self.device.registers if register.content != maps.PLAIN)

    def _imports(self) -> list[str]:
        device = self.device
        blocks = [item for bar in device.bars for item in bar.items if isinstance(item, maps.Block)]
        members = [member for block in blocks for member in block.members]
        needed = {
            "Bar": bool(device.bars),
            "Block": bool(blocks),
            "IntX": bool(device.intx),
            "Msi": bool(device.msi),
            "MsiX": device.msix is not None,
            "PciDevice": True,
            "doorbell": any(isinstance(member, maps.Doorbell) for member in members),
            "reg": any(isinstance(member, maps.Register) for member in members),
        }
        return [name for name, is_needed in needed.items() if is_needed]

    def _row(self, block: maps.Block) -> Iterator[str]:
        yield f"class {self._rows[id(block)]}(Block):"
        yield from docstring(f"A row of {block.name}.")
        yield ""
        for member in block.members:
            if isinstance(member, maps.Doorbell):
                words = [f"{member.offset:#04x}", *_bell(member)]
                yield f"    {member.name} = doorbell({', '.join(words)})"
            else:
                kind = self._named.get(id(member))
                size = [] if member.size == 4 else [str(member.size)]
                words = [f"{member.offset:#04x}", *size, *([f"kind={kind}"] if kind else []), *_register(member)]
                yield f"    {member.name} = reg({', '.join(words)})"
            yield from docstring(member.description)

    def _class(self) -> Iterator[str]:
        device = self.device
        yield f"class {self.base}(PciDevice):"
        yield from docstring(f"The registers of {device.name}, without behaviour.")
        names = Names()
        for name in [bar.name for bar in device.bars] + [item.name for bar in device.bars for item in bar.items]:
            names.of_device(name)
        vectors = device.msix
        if vectors is not None or device.msi or device.intx:
            yield ""
        if vectors is not None and vectors.bar is None:
            yield f"    {names.of_device('irq')} = MsiX({vectors.count})"
        if device.msi:
            yield f"    {names.of_device('msi')} = Msi({device.msi})"
        if device.intx:
            yield f"    {names.of_device('line')} = IntX({device.intx if device.intx > 1 else ''})"
        for bar in device.bars:
            yield ""
            yield f"    {bar.name} = Bar({', '.join(_bar(bar))})"
            yield from docstring(bar.description)
            if vectors is not None and vectors.bar == bar.index:
                place = f"bar={bar.name}, offset={vectors.offset:#x}"
                yield f"    {names.of_device('irq')} = MsiX({vectors.count}, {place})"
            for item in bar.items:
                yield f"    {item.name} = {bar.name}.{self._item(item)}"
                yield from docstring(item.description)

    def _item(self, item: maps.Item) -> str:
        place = f"{item.offset:#05x}"
        match item:
            case maps.Register():
                kind = self._named.get(id(item))
                size = [] if item.size == 4 else [f"size={item.size}"]
                return f"reg({', '.join([place, *([kind] if kind else []), *size, *_register(item)])})"
            case maps.Doorbell():
                return f"doorbell({', '.join([place, *_bell(item)])})"
            case maps.Range():
                words = [*(["posted=True"] if item.posted else []), *([f"bell={item.bell}"] if item.bell else [])]
                return f"ioregion({', '.join([place, f'{item.size:#x}', *words])})"
            case maps.Area():
                return f"area({place}, {item.size:#x})"
            case maps.Block():
                return f"block({place}, {self._rows[id(item)]}, count={item.count}, stride={item.stride:#x})"


_IMPORTED = ("Bar", "Block", "IntEnum", "IntFlag", "IntX", "Msi", "MsiX", "PciDevice", "doorbell", "reg")


def _bar(bar: maps.BarMap) -> Iterator[str]:
    yield from (str(bar.index), f"size={bar.size:#x}")
    if bar.kind == "io":
        yield "io=True"
    if bar.bits != 32:
        yield f"bits={bar.bits}"
    if bar.prefetchable:
        yield "prefetchable=True"
    if bar.fill:
        yield f"fill={bar.fill:#04x}"


def _register(item: maps.Register) -> Iterator[str]:
    if item.access != "rw":
        yield f'access="{item.access}"'
    if item.reset:
        yield f"reset={item.reset:#x}"
    if item.writable != maps.full(item.size):
        yield f"writable={item.writable:#x}"


def _bell(item: maps.Doorbell) -> Iterator[str]:
    if item.size != 4:
        yield f"size={item.size}"
    if item.match is not None:
        yield f"match={item.match:#x}"
    if item.value:
        yield "value=True"


def _enumeration(name: str, register: maps.Register) -> Iterator[str]:
    for field in register.fields:
        if field.values:
            yield f"class {class_of_values(name, field.name)}(IntEnum):"
            yield from docstring(f"Values of {name}.{field.name}.")
            yield ""
            yield from _values(field.values)
            yield from ("", "")
    if register.content == maps.VALUES:
        yield f"class {name}(IntEnum):"
        yield from docstring(register.kind_description or f"Values of {register.name}.")
        yield ""
        yield from _values(register.values)
        return
    digits = 2 * register.size + 2
    yield f"class {name}(IntFlag):"
    yield from docstring(register.kind_description or f"Bits of {register.name}.")
    yield ""
    for field in register.fields:
        yield f"    {field.name} = {field.mask:#0{digits}x}"
        yield from docstring(field.description)
    for mask in register.masks:
        yield f"    {mask.name} = {mask.number:#0{digits}x}"
        yield from docstring(mask.description)


def _values(values: tuple[maps.Value, ...]) -> Iterator[str]:
    for value in values:
        yield f"    {value.name} = {value.number:#x}"
        yield from docstring(value.description)


def docstring(text: str) -> Iterator[str]:
    """The lines of a docstring within a class; none for an empty text."""
    if not text:
        return
    plain = text.replace("\\", "\\\\").replace('"', '\\"')
    if len(plain) + 10 <= WIDTH:
        yield f'    """{plain}"""'
        return
    lines = textwrap.wrap(plain, WIDTH - 8, break_long_words=False)
    yield f'    """{lines[0]}'
    yield from (f"    {line}" for line in lines[1:])
    yield '    """'
