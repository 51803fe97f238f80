"""The register map of a SystemRDL or IP-XACT file. systemrdl-compiler and peakrdl-ipxact read them.

What a device file cannot say is reported, by the name that it has in the file; nothing is left out in silence.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from bellwire.declare.bar import BARS
from bellwire.declare.block import MOST_ROWS
from bellwired.errors import CommandError
from bellwired.maps import register_map as maps
from bellwired.maps.names import Names
from bellwired.maps.rdl_nodes import folded, prop, words
from bellwired.maps.rdl_register import read_register

PAGE = 4096
SMALLEST = 4096
IDENTITY = {"vendor": 0x1234, "device": 0x0001, "class_code": 0x088000}
"""What a file says that names no device: edit it in the class line."""
NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)
HINT = "pip install 'bellwire[maps]'"


class Read(NamedTuple):
    """A map, and what could not be expressed: the place in the file, and what is the matter."""

    device: maps.Map
    lost: tuple[tuple[str, str], ...]


def read(path: Path, *, top: str = "", include: Sequence[Path] = ()) -> Read:
    """Read the address map ``top``, or the last one in the file. A CommandError has the compiler's own words."""
    if not path.is_file():
        raise CommandError(f"{path}: {'this is a folder' if path.is_dir() else 'no such file'}")
    try:
        from systemrdl.compiler import RDLCompiler
        from systemrdl.messages import RDLCompileError
    except ImportError:
        raise CommandError("to read a register map takes systemrdl-compiler", HINT) from None
    printer = _printer()
    compiler = RDLCompiler(message_printer=printer)
    try:
        if path.suffix == ".xml":
            _ipxact(compiler).import_file(str(path))
        else:
            places = [str(path.parent), *map(str, include), str(files(__package__))]
            compiler.compile_file(str(path), incl_search_paths=places)
        root = compiler.elaborate(top_def_name=top or None)
    except RDLCompileError as error:
        raise CommandError(f"{path}: {printer.first or error}") from None
    except subprocess.TimeoutExpired:
        raise CommandError(f"{path}: its embedded Perl does not end") from None
    except (OSError, ValueError, LookupError, SyntaxError) as error:  # SyntaxError: the XML parser's is derived from it
        raise CommandError(f"{path}: {printer.first or _said(error)}") from None
    return _Reader(root.top).read()


def _said(error: Exception) -> str:
    """The words of an error; those of peakrdl-ipxact for XML without a namespace, and for bad numbers, say nothing."""
    if isinstance(error, LookupError):
        return "this is no IP-XACT: its root has no namespace, as that of IEEE 1685-2014"
    return str(error) or "it has a number that cannot be read: digits or 'h and digits expected, no expression"


def _ipxact(compiler: Any) -> Any:
    try:
        from peakrdl_ipxact import IPXACTImporter
    except ImportError:
        raise CommandError("to read IP-XACT takes peakrdl-ipxact", HINT) from None
    return IPXACTImporter(compiler)


def _printer() -> Any:
    from systemrdl.messages import MessagePrinter, Severity

    class Printer(MessagePrinter):
        """Keeps the first error, with its file and line."""

        first = ""

        def print_message(self, severity: Any, text: str, src_ref: Any) -> None:
            if severity >= Severity.ERROR and not self.first:
                line = getattr(src_ref, "line", None)
                self.first = f"line {line}: {text}" if line else text

    return Printer()


class _Reader:
    """Reads one elaborated address map."""

    def __init__(self, top: Any) -> None:
        self._top = top
        self._lost: list[tuple[str, str]] = []
        self._names = Names()

    def read(self) -> Read:
        top = self._top
        identity = {name: prop(top, name, default) for name, default in IDENTITY.items()}
        msix = prop(top, "msix")
        given = top.get_property("name", default="") if prop(top, "vendor") is not None else ""
        name = given if NAME.fullmatch(given) else top.inst_name
        device = maps.Map(
            name=name,
            description=folded(top.get_property("desc", default="")),
            **identity,
            revision=prop(top, "revision", 0),
            subsystem_vendor=prop(top, "subsystem_vendor", identity["vendor"]),
            subsystem=prop(top, "subsystem", identity["device"]),
            msix=None if msix is None else maps.Vectors(msix, prop(top, "msix_bar"), prop(top, "msix_offset", 0)),
            msi=prop(top, "msi", 0),
            intx=prop(top, "intx", 0),
            bars=tuple(self._bars()),
        )
        return Read(device, tuple(self._lost))

    def lose(self, node: Any, what: str) -> None:
        """Report what is not in the map."""
        self._lost.append((node.get_path(), what))

    def _bars(self) -> Iterator[maps.BarMap]:
        children = self._top.children()
        marked = [child for child in children if prop(child, "bar") is not None]
        if not marked:
            yield self._bar(self._top, prop(self._top, "bar", 0), "mmio")
            return
        for child in children:
            if child not in marked:
                self.lose(child, "lies in no BAR: give its address map the property bellwire_bar")
            elif child.is_array:
                self.lose(child, "a BAR cannot repeat: declare one address map for each")
            else:
                yield self._bar(child, prop(child, "bar"), child.inst_name)

    def _bar(self, node: Any, index: int, name: str) -> maps.BarMap:
        if not 0 <= index < BARS:
            raise CommandError(f"{node.get_path()}: bellwire_bar is 0 to {BARS - 1}, not {index}")
        name = self._names.of_device(name)
        inside = list(self._items(node, "", node.raw_absolute_address))
        extent = max((item.offset + _extent(item) for item in inside), default=0)
        size = prop(node, "size") or max(SMALLEST, 1 << max(0, extent - 1).bit_length())
        return maps.BarMap(
            name=name,
            index=index,
            size=size,
            kind="io" if prop(node, "io", False) else "memory",
            bits=prop(node, "bits", 32),
            prefetchable=prop(node, "prefetchable", False),
            fill=prop(node, "fill", 0),
            description=words(node) if node is not self._top else "",
            items=maps.order(inside),
        )

    def _items(self, node: Any, prefix: str, base: int) -> Iterator[maps.Item]:
        """What lies in ``node``; a register file that does not repeat lends its name to what is in it."""
        children = node.children()
        if len(children) == 1 and not prefix and _holds(children[0]) and not children[0].is_array:
            yield from self._items(children[0], "", base)  # IP-XACT's only address block
            return
        for child in children:
            name = f"{prefix}_{child.inst_name}" if prefix else child.inst_name
            if child.is_array and child.n_elements > 1:
                yield from self._block(child, name, base)
            elif _holds(child):
                yield from self._items(child, name, base)
            else:
                yield from self._leaf(child, self._rename(child, name), base)

    def _rename(self, node: Any, name: str) -> str:
        given = self._names.of_device(name)
        if given != name:
            self.lose(node, f"is called {given}: a device has {name} for its own use, or another item has this name")
        return given

    def _leaf(self, node: Any, name: str, base: int) -> Iterator[maps.Item]:
        offset = _address(node) - base
        if type(node).__name__ == "MemNode":
            yield self._memory(node, name, offset)
        elif prop(node, "access") != "absent":
            for item in read_register(node, name, offset, self.lose):
                yield item if item.name == name else replace(item, name=self._rename(node, item.name))

    def _memory(self, node: Any, name: str, offset: int) -> maps.Item:
        size = node.total_size
        if prop(node, "register", False):
            access = prop(node, "access", "rw")
            writable = prop(node, "writable", maps.full(size))
            return maps.Register(name, offset, size, access, prop(node, "reset", 0), writable, words(node))
        if node.children():
            self.lose(node, "has registers of its own inside: they are a memory here")
        if node.get_property("sw").name != "rw":
            self.lose(node, f"sw = {node.get_property('sw').name}: a memory can be read and written here")
        if prop(node, "hooked", False) or offset % PAGE or size % PAGE:
            return maps.Range(name, offset, size, prop(node, "posted", False), prop(node, "bell", 0), words(node))
        return maps.Area(name, offset, size, words(node))

    def _block(self, node: Any, name: str, base: int) -> Iterator[maps.Item]:
        if len(node.array_dimensions) > 1:
            self.lose(node, f"its dimensions {node.array_dimensions} are one here: the rows are counted through")
        if node.n_elements > MOST_ROWS:
            self.lose(node, f"has {node.n_elements} elements: a block has at most {MOST_ROWS}, so it is left out")
            return
        if type(node).__name__ == "MemNode":
            for index in range(node.n_elements):
                offset = node.raw_address_offset + index * node.array_stride
                each = self._rename(node, f"{name}_{index}")
                yield self._memory_at(node, each, offset)
            return
        members: list[maps.Register | maps.Doorbell] = []
        own = Names()
        start = _address(node)
        for path, child, at in _rows(node, start):
            word = own.of_row(path or "value")
            if type(child).__name__ == "MemNode":
                self.lose(child, "a memory cannot be part of a row: it is left out")
                continue
            for item in read_register(child, word, at, self.lose):
                item = item if item.name == word else replace(item, name=own.of_row(item.name))
                members.append(item)
        if members:
            about = words(node) if _holds(node) else ""
            yield maps.Block(
                self._rename(node, name), start - base, node.n_elements, node.array_stride, _sorted(members), about
            )

    def _memory_at(self, node: Any, name: str, offset: int) -> maps.Item:
        size = node.size
        if offset % PAGE or size % PAGE:
            return maps.Range(name, offset, size, description=words(node))
        return maps.Area(name, offset, size, words(node))


def _rows(node: Any, start: int, prefix: str = "") -> Iterator[tuple[str, Any, int]]:
    """The registers in one row, arrays in it counted out: their names in the row, nodes, and offsets in the row."""
    if not _holds(node):
        yield prefix, node, 0
        return
    for child in node.children():
        count = child.n_elements if child.is_array else 1
        for index in range(count):
            name = f"{child.inst_name}{index}" if child.is_array else child.inst_name
            name = f"{prefix}_{name}" if prefix else name
            at = child.raw_address_offset + index * (child.array_stride or 0)
            if _holds(child):
                yield from ((path, leaf, at + below) for path, leaf, below in _rows(child, 0, name))
            else:
                yield name, child, at


def _sorted(members: list[maps.Register | maps.Doorbell]) -> tuple[maps.Register | maps.Doorbell, ...]:
    return tuple(sorted(members, key=lambda member: (member.offset, member.name)))


def _holds(node: Any) -> bool:
    return type(node).__name__ in ("AddrmapNode", "RegfileNode")


def _address(node: Any) -> int:
    """Where a node lies in the top address map: the first element, if it is an array."""
    at = 0
    while node is not None and hasattr(node, "raw_address_offset"):
        at += node.raw_address_offset
        node = node.parent
    return at


def _extent(item: maps.Item) -> int:
    return item.count * item.stride if isinstance(item, maps.Block) else item.size
