"""The files of an installation: made from the parsers and from the folder ``systemd``."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

import shtab

from bellwired.commands.cli import parser
from bellwired.install import manual_pages
from bellwired.install.layout import Layout

COMMANDS = ("bellwire", "bellwired")
COMPLETIONS = {
    "bash": "bash-completion/completions/bellwire",
    "zsh": "zsh/site-functions/_bellwire",
    "fish": "fish/vendor_completions.d/bellwire.fish",
}
DISSECTOR = Path(__file__).with_name("bellwire.lua")
"""What Wireshark takes captures apart with."""
LAUNCHER = """\
#!/bin/sh
# Written by `bellwire install`.
python={python}
case $(readlink -f "$python") in
*/{version}) [ ! -x "$python" ] || exec {command} "$@" ;;
esac
echo "{name}: $python is {version} no longer (Python was upgraded): install Bellwire again" >&2
exit 1
"""


class File(NamedTuple):
    """What to write where."""

    path: Path
    content: str
    mode: int = 0o644


def files(layout: Layout, destination: Path | None) -> Iterator[File]:
    """All files of an installation. The Python package may lie below ``destination`` (DESTDIR) until it is shipped."""
    yield from _launchers(layout, destination)
    for name, page in manual_pages.pages().items():
        yield File(layout.share / f"man/man{name[-1]}" / name, page)
    for shell, path in COMPLETIONS.items():
        if shell in shtab.SUPPORTED_SHELLS:
            yield File(layout.share / path, f"{shtab.complete(parser(), shell)}\n")
    yield File(layout.wireshark / DISSECTOR.name, DISSECTOR.read_text())
    source = _source()
    for unit in _units(source / "user"):
        yield _with_commands(layout.user_units / unit.name, unit, layout)
    if layout.system is None:
        return
    for unit in _units(source):
        yield _with_commands(layout.system / "systemd/system" / unit.name, unit, layout)
    yield _with_commands(layout.share / "vfio-user/50-bellwire.json", source / "50-bellwire.json", layout)
    yield _with_commands(layout.library / "bellwired.toml", source / "bellwired.toml", layout)
    for name in ("sysusers.d/bellwire.conf", "tmpfiles.d/bellwire.conf"):
        yield _with_commands(layout.system / name, source / name, layout)
    catalog = "catalog/bellwire.catalog"
    yield _with_commands(layout.system / "systemd" / catalog, source / catalog, layout)


def folders(layout: Layout) -> Iterator[Path]:
    """Empty folders for the user's files."""
    yield layout.configuration / "devices.d"
    yield layout.library / "devices.d"
    yield layout.library / "plugins"


def _launchers(layout: Layout, destination: Path | None) -> Iterator[File]:
    """Scripts that start the commands. They report a virtual environment that an upgrade of Python has broken."""
    python = _shipped(Path(sys.executable), destination)
    for name in COMMANDS:
        command = _shipped(_command(name), destination)
        if command.parent != layout.bin:
            words = {"python": python, "command": command, "version": Path(os.path.realpath(sys.executable)).name}
            quoted = {key: shlex.quote(str(word)) for key, word in words.items()}
            yield File(layout.bin / name, LAUNCHER.format(name=name, **quoted), 0o755)


def _command(name: str) -> Path:
    """The path at which pip has installed a command."""
    package = distribution("bellwire")
    for path in package.files or ():
        if path.name == name and path.parent.name == "bin":
            return Path(os.path.normpath(str(package.locate_file(path))))
    return Path(sys.executable).with_name(name)


def _shipped(path: Path, destination: Path | None) -> Path:
    if destination is None or not path.is_relative_to(destination):
        return path
    return Path("/") / path.relative_to(destination)


def _source() -> Path:
    """The folder ``systemd``: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "systemd"
    return installed if installed.is_dir() else package.parents[1] / "systemd"


def _units(folder: Path) -> list[Path]:
    return sorted((*folder.glob("*.service"), *folder.glob("*.socket")))


def _with_commands(path: Path, source: Path, layout: Layout) -> File:
    """A file's content, with /usr/bin replaced by this installation's folder of commands."""
    quoted = {".json": _for_json, ".service": _for_systemd}.get(source.suffix, str)

    def command(found: re.Match[str]) -> str:
        return quoted(str(layout.bin / found[1]))

    return File(path, re.sub(r"/usr/bin/([\w-]+)", command, source.read_text()))


def _for_json(path: str) -> str:
    """A path within a JSON string (RFC 8259 §7)."""
    return json.dumps(path)[1:-1]


def _for_systemd(path: str) -> str:
    """The first word of a command line in a unit (systemd.syntax(7), "Quoting"; systemd.unit(5), "Specifiers").

    systemd refuses quotes and backslashes in it, escaped or not.
    """
    escaped = path.replace("%", "%%")
    return escaped if re.fullmatch(r"[\w/.,:+=@%-]+", path) else f'"{escaped}"'
