"""Addresses in reports, such as ``copier_probe+0x12/0x40 [copier]``, as lines of source.

binutils does the work: readelf knows where symbols lie, and addr2line which line an address was compiled from. What
they do not know, or cannot say in time, stays as the kernel has printed it.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 30.0  # seconds for a program of binutils; a kernel with debug information is large
MOST_ADDRESSES = 500  # of one report
_ADDRESS = re.compile(
    r"([A-Za-z_][\w.]{0,200})\+0x([0-9a-f]{1,8})/0x([0-9a-f]{1,8})(?: \[(\w{1,64})\b[^\]\n]{0,80}\])?"
)
_EXACT = re.compile(r"RIP: |WARNING: |BUG: KASAN|BUG: K\w+ in")
"""Lines whose address is of the instruction itself. Those of a stack are return addresses: the call is before them."""
_SYMBOL = re.compile(r"\s*\d+: ([0-9a-f]+)\s+(\w+)\s+(?:FUNC|NOTYPE)\s+\w+\s+\w+\s+(?:\[[^\]]*\]\s+)?(\d+) (\S+)")
_SECTION = re.compile(r"\s*\[\s*(\d+)\] (\S+)\s+(?:PROGBITS)\s+([0-9a-f]+) [0-9a-f]+ ([0-9a-f]+)")
_UNKNOWN = "??"


@dataclass(frozen=True)
class _Symbol:
    section: str
    address: int
    room: int
    """Bytes until the next symbol or the end of the section: what the kernel prints behind the slash."""


class Decoder:
    """Decodes reports of a guest.

    ``vmlinux`` is the kernel with debug information, ``modules`` are .ko files, by name or not; either may be missing.
    Paths below one of ``folders`` are shown relative to it.
    """

    def __init__(self, vmlinux: Path | None = None, modules: Iterable[Path] = (), folders: Sequence[Path] = ()) -> None:
        self._files = {path.stem.replace("-", "_"): path for path in modules}
        if vmlinux is not None:
            self._files[""] = vmlinux
        self._folders = [f"{os.path.realpath(folder)}/" for folder in folders]
        self._tables: dict[Path, Mapping[str, list[_Symbol]]] = {}

    def decode(self, text: str) -> str:
        """The text, with the line of source in parentheses behind each address that is known."""
        lines = self._lines(text)

        def with_line(found: re.Match[str]) -> str:
            line = lines.get((found[0], _exact(found)))
            return f"{found[0]} ({line})" if line else found[0]

        return _ADDRESS.sub(with_line, text)

    def _lines(self, text: str) -> dict[tuple[str, bool], str]:
        """The line of source of each address, by how it is printed and whether it is exact."""
        asked: dict[tuple[Path, str], dict[int, list[tuple[str, bool]]]] = {}
        for found in list(_ADDRESS.finditer(text))[:MOST_ADDRESSES]:
            name, offset, size, module = found[1], int(found[2], 16), int(found[3], 16), found[4] or ""
            file, exact = self._files.get(module), _exact(found)
            symbol = self._symbol(file, name, size) if file else None
            if file and symbol and offset <= size:
                address = symbol.address + offset - (0 if exact or not offset else 1)
                asked.setdefault((file, symbol.section), {}).setdefault(address, []).append((found[0], exact))
        known: dict[tuple[str, bool], str] = {}
        for (file, section), printed in asked.items():
            for address, line in self._sources(file, section, list(printed)).items():
                known.update(dict.fromkeys(printed[address], line))
        return known

    def _symbol(self, file: Path, name: str, size: int) -> _Symbol | None:
        """The one function of that name and size; None if there is none, or several.

        In a module, the kernel lays sections one behind the other, so the last function of a section gets more room.
        """
        if file not in self._tables:
            self._tables[file] = _symbols(file)
        named = self._tables[file].get(name, ())
        fitting = [symbol for symbol in named if symbol.room == size]
        if not fitting:
            fitting = [symbol for symbol in named if symbol.section and symbol.room < size]
        return fitting[0] if len(fitting) == 1 else None

    def _sources(self, file: Path, section: str, addresses: list[int]) -> dict[int, str]:
        """The lines of source of addresses in a section of a file, for those that are known."""
        words = ["addr2line", "--exe", os.fspath(file), "--addresses", "--inlines"]
        if section:
            words += ["--section", section]
        said = _run([*words, *(f"{address:#x}" for address in addresses)])
        found: dict[int, list[str]] = {}
        for line in said.splitlines():
            if line.startswith("0x"):
                found[int(line, 16)] = []
            elif found and not line.startswith(_UNKNOWN) and not line.endswith((":?", ":0")):
                found[next(reversed(found))].append(self._short(line))
        return {address: ", inlined at ".join(lines) for address, lines in found.items() if lines}

    def _short(self, line: str) -> str:
        """A line of source without discriminators, and relative to one of the folders if it is below one."""
        path, _, number = line.partition(" (")[0].rpartition(":")
        path = os.path.normpath(path)
        for folder in self._folders:
            path = path.removeprefix(folder)
        return f"{path}:{number}"


def _exact(found: re.Match[str]) -> bool:
    start = found.string.rfind("\n", 0, found.start()) + 1
    return _EXACT.search(found.string, start, found.start()) is not None


def _symbols(file: Path) -> Mapping[str, list[_Symbol]]:
    """The functions of an ELF file. In a module, addresses are relative to sections."""
    said = _run(["readelf", "--wide", "--section-headers", "--symbols", os.fspath(file)])
    relocatable = file.suffix == ".ko"
    sections: dict[str, tuple[str, int]] = {}
    places: dict[str, set[int]] = {}
    named: list[tuple[str, str, int]] = []
    for line in said.splitlines():
        if found := _SECTION.match(line):
            start = 0 if relocatable else int(found[3], 16)
            sections[found[1]] = found[2], start + int(found[4], 16)
        elif (found := _SYMBOL.match(line)) and found[3] in sections:
            address = int(found[1], 16)
            places.setdefault(found[3], set()).add(address)
            named.append((found[4], found[3], address))
    ends = {number: _next(sorted({*here, sections[number][1]})) for number, here in places.items()}
    table: dict[str, list[_Symbol]] = {}
    for name, number, address in named:
        section = sections[number][0] if relocatable else ""
        table.setdefault(name, []).append(_Symbol(section, address, ends[number].get(address, address) - address))
    return table


def _next(places: Sequence[int]) -> dict[int, int]:
    return dict(itertools.pairwise(places))


def _run(words: Sequence[str]) -> str:
    """The output of a program; nothing if it is not there, fails, or takes too long."""
    if shutil.which(words[0]) is None:
        return ""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
