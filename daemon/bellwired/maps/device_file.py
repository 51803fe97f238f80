"""A device file that has been imported: declarations between two marks, and everything else, which is the author's."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from bellwire import DeclarationError
from bellwired.errors import CommandError
from bellwired.maps import register_map as maps
from bellwired.maps.names import camel
from bellwired.maps.to_python import Declarations, docstring

BEGIN = "# bellwire import: begin"
END = "# bellwire import: end"
_BEGIN = re.compile(rf"^{BEGIN} \(([0-9a-f]+) of ([^\n]*)\)$", re.MULTILINE)
_END = re.compile(rf"^{END}$", re.MULTILINE)


def make(device: maps.Map, source: str, old: str | None, path: Path, *, force: bool = False) -> str:
    """The file's new text: ``old`` with its declarations made anew, or a whole new file where ``old`` is None.

    A CommandError if ``old`` has no marks, or if the declarations were edited, unless ``force`` is given.
    """
    declared = Declarations(device)
    region = "\n".join(_region(declared, " ".join(source.split())))
    _try_out(region, source)
    if old is None:
        return "\n".join(_file(declared, region))
    begin = _BEGIN.search(old)
    end = _END.search(old, begin.end()) if begin else None
    if begin is None or end is None:
        raise CommandError(
            f"{path} has no declarations that bellwire import has made",
            f"between the lines {BEGIN!r} and {END!r}: choose another name, or move the file away",
        )
    if not force and digest(old[begin.end() : end.start()]) != begin[1]:
        raise CommandError(
            f"{path}: the declarations between the marks have been edited",
            "change the map in place of them, or see what would change (--diff) and overwrite it (--force)",
        )
    return old[: begin.start()] + region + old[end.end() :]


def difference(old: str | None, new: str, path: Path) -> str:
    """What an import would change, as a unified diff."""
    before = [] if old is None else old.splitlines(keepends=True)
    after = new.splitlines(keepends=True)
    return "".join(difflib.unified_diff(before, after, str(path), str(path)))


def digest(text: str) -> str:
    """A checksum of declarations that does not change with white space."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def _try_out(region: str, source: str) -> None:
    """Declare it once. What the SDK refuses (registers that overlap, a BAR's size) is the map's mistake."""
    try:
        exec(compile(region, source, "exec"), {"__name__": "imported"})
    except DeclarationError as error:
        raise CommandError(f"{source} cannot be a device's map: {error}") from None
    except (TypeError, ValueError, NameError, AttributeError, SyntaxError) as error:
        hint = "rename what the error names in the map"
        raise CommandError(f"{source} cannot be a device's map: its declarations clash: {error}", hint) from None


def _region(declared: Declarations, source: str) -> Iterator[str]:
    lines = ["# fmt: off", *declared.lines(), "# fmt: on"]
    text = "\n" + "\n".join(lines) + "\n"
    yield f"{BEGIN} ({digest(text)} of {source})"
    yield from lines
    yield END


def _file(declared: Declarations, region: str) -> Iterator[str]:
    device = declared.device
    kind = camel(device.name)
    yield from (f'"""{device.name}, with the declarations of its register map."""', "")
    yield from ("from __future__ import annotations", "", region, "", "")
    yield f"class {kind}("
    yield f"    {declared.base},"
    yield f"    vendor=0x{device.vendor:04X},"
    yield f"    device=0x{device.device:04X},"
    yield f"    class_code=0x{device.class_code:06X},"
    if device.revision:
        yield f"    revision=0x{device.revision:02X},"
    if (device.subsystem_vendor, device.subsystem) != (device.vendor, device.device):
        yield f"    subsystem=(0x{device.subsystem_vendor:04X}, 0x{device.subsystem:04X}),"
    yield f'    name="{device.name}",'
    yield "):"
    yield from docstring(device.description or "What it is, in a line.")
    yield from _hooks(declared)
    yield ""


def _hooks(declared: Declarations) -> Iterator[str]:
    """A hook for each doorbell, since a doorbell without one is refused; it does nothing yet."""
    for bar in declared.device.bars:
        for item in bar.items:
            match item:
                case maps.Doorbell():
                    value = ", value: int" if item.value else ""
                    yield from _hook(f"{declared.base}.{item.name}.ring", f"ring_{item.name}", value)
                case maps.Block():
                    for member in item.members:
                        if isinstance(member, maps.Doorbell):
                            value = ", index: int" + (", value: int" if member.value else "")
                            name = f"{item.name}.{member.name}"
                            yield from _hook(f"{declared.base}.{name}.ring", f"ring_{name.replace('.', '_')}", value)


def _hook(tied: str, name: str, arguments: str) -> Iterator[str]:
    yield from ("", f"    @{tied}", f"    def {name}(self{arguments}) -> None:")
    yield f'        """Runs when the driver rings {tied.split(".", 1)[1].removesuffix(".ring")}."""'
