"""The manual pages, written from the parsers and the settings: ``python -m bellwired.install.manual_pages FOLDER``.

argparse-manpage does the work. ``bellwire install`` writes them where ``man`` looks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from bellwired.commands import cli
from bellwired.manager import main as daemon
from bellwired.settings import Daemon, Device

EXIT_STATUS = """\
0 when all went well, 1 when something failed (standard error says what, a line for each), 2 for a mistake on the
command line. status ends with 3 when the device is not running."""
ENVIRONMENT = """\
NO_COLOR turns colours off. XDG_CONFIG_HOME, XDG_DATA_HOME and XDG_RUNTIME_DIR say where a user's own configuration,
plugins and sockets are."""
FILES = """\
/etc/bellwire, /run/bellwire, /usr/local/lib/bellwire and /usr/lib/bellwire have configuration and plugins; for users
other than root, the XDG folders come first. /run/bellwire/control is the control socket, and
/run/bellwire/NAME.sock a device's."""
SIGNALS = """\
SIGHUP reads the configuration again, and touches only what has changed. SIGTERM and SIGINT stop every device in
order."""
EXAMPLES = {
    "bellwire": """\
bellwire demo
bellwire run ./my_nic.py \\-o rate=100
bellwire new my_nic
bellwire list
bellwire qemu\\-args my_nic""",
    "bellwired": """\
bellwired \\-\\-config\\-dir ./conf \\-\\-runtime\\-dir ./run
bellwire list \\-\\-runtime\\-dir ./run""",
}


def pages() -> dict[str, str]:
    """Every page's file name and content."""
    return {
        "bellwire.1": _commands(),
        "bellwired.8": _page(daemon.parser(), "8", {"signals": SIGNALS, "files": FILES}),
        "bellwire-device.toml.5": _settings(),
    }


def keys(table: type[Device | Daemon]) -> list[tuple[str, str, str, str]]:
    """Each key of a file: its name, its type in words, its default, and what it is for."""
    hints = get_type_hints(table, include_extras=True)
    found = []
    for field in msgspec.structs.fields(table):
        hint = hints[field.name]
        default = "" if field.required else json.dumps({} if field.default is msgspec.NODEFAULT else field.default)
        found.append((field.encode_name, _type(hint), default, _description(hint)))
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Write the pages."""
    parser = argparse.ArgumentParser(description="Writes the manual pages.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(words).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pages().items():
        (folder / name).write_text(content)
    return 0


def _commands() -> str:
    top = cli.parser()
    sections = {"exit status": EXIT_STATUS, "environment": ENVIRONMENT, "files": FILES}
    return _page(top, "1", sections)


def _page(parser: argparse.ArgumentParser, section: str, texts: dict[str, str]) -> str:
    from argparse_manpage.manpage import Manpage

    about = (parser.description or "").split(". ")[0].rstrip(".").replace("\n", " ")
    text = str(Manpage(parser, format="pretty"))
    head = f'.TH {parser.prog.upper()} {section} "" Bellwire "Bellwire\'s manual"'
    lines = [head, *text.splitlines()[1:]]
    name = lines.index(".SH NAME") + 1
    lines[name] = f"{parser.prog} \\- {about}"
    for title, body in texts.items():
        lines += [f".SH {title.upper()}", *body.splitlines()]
    lines += [".SH EXAMPLES", ".nf", *EXAMPLES[parser.prog].splitlines(), ".fi", ".SH SEE ALSO"]
    lines.append(".BR bellwire (1), bellwired (8), bellwire\\-device.toml (5)")
    return "\n".join(lines) + "\n"


def _settings() -> str:
    lines = ['.TH BELLWIRE-DEVICE.TOML 5 "" Bellwire "Bellwire\'s manual"', ".SH NAME"]
    lines += ["bellwire\\-device.toml, bellwired.toml \\- the daemon's configuration files", ".SH DESCRIPTION"]
    lines += [
        "One file for each device, devices.d/NAME.toml, and bellwired.toml for the daemon itself, below /etc/bellwire,",
        "/run/bellwire, /usr/local/lib/bellwire or /usr/lib/bellwire. A file in an earlier folder overrides one of the",
        "same name in a later one; an empty file, or a link to /dev/null, masks it. A file that cannot be used hurts",
        "no other device.",
    ]
    for title, table in (("KEYS OF A DEVICE'S FILE", Device), ("KEYS OF BELLWIRED.TOML", Daemon)):
        lines.append(f'.SH "{title}"')
        for name, kind, default, about in keys(table):
            lines += [".TP", f'.BR {name} " = " {kind}'.replace("-", "\\-")]
            lines.append(f"{about} Default: {default}." if default else f"{about} Must be given.")
    lines += [".SH EXAMPLE", ".nf", 'device = "edu"', 'group = "kvm"', 'mode = "0660"', "", "[options]"]
    lines += ["dma_delay = 0.5", ".fi", ".SH SEE ALSO", ".BR bellwire (1), bellwired (8)"]
    return "\n".join(lines) + "\n"


def _type(hint: Any) -> str:
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    return "table" if get_origin(hint) is dict else {str: "text", bool: "true|false"}.get(hint, "number")


def _description(hint: Any) -> str:
    texts = [meta.description for meta in getattr(hint, "__metadata__", ()) if isinstance(meta, Meta)]
    return next((text for text in reversed(texts) if text), "")


if __name__ == "__main__":
    sys.exit(main())
