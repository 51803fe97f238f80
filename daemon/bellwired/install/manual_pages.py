"""The manual pages, written from the parsers and the settings: ``python -m bellwired.install.manual_pages FOLDER``.

argparse-manpage does the work. ``bellwire install`` writes them where ``man`` looks.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from bellwire import PciDevice
from bellwired.commands import cli
from bellwired.find import bundled
from bellwired.manager import main as daemon
from bellwired.settings import Daemon, Device

STATUSES = {
    0: "All went well.",
    1: "Something failed. Standard error says what, a line for each thing.",
    2: "The command line has a mistake.",
    130: "It was interrupted by Ctrl-C.",
}
"""The exit statuses of every command."""
OWN_STATUSES = {
    "run": {0: "SIGTERM or Ctrl-C has ended it in order.", 130: "It was interrupted before it served."},
    "boot": {
        0: "The command in the guest, or the shell, ended with status 0.",
        1: "The command in the guest ended with it. So it is with every status that is not listed here.",
        124: "The command took longer than --timeout allows, and was killed.",
        125: "There was no guest, or it failed: its kernel reported a mistake, a device failed, or a module did not "
        "build. Standard error says why.",
        126: "The guest cannot run the command.",
        127: "The guest has no such command.",
        143: "It was ended by SIGTERM.",
    },
    "vmm": {0: "The guest said that all is well, or powered off.", 3: "The guest's kernel panicked."},
    "status": {0: "All devices that were asked for run.", 3: "One of them does not run."},
    "monitor": {0: "The daemon has ended."},
    "logs": {0: "All was shown or, with --follow, the daemon has ended."},
    "reload": {0: "All is as configured.", 1: "A file cannot be used, or a device has not started with it."},
    "check": {0: "All the files can be used.", 1: "One of them cannot be used. Standard error says why."},
    "cat-config": {0: "All the files can be used.", 1: "One of them cannot be used. Standard error says why."},
    "import": {1: "The map cannot be read, the file is not to be overwritten, or --check found it out of date."},
    "edit": {1: "What was written cannot be used, and what was before stays; or something else failed."},
}
"""The exit statuses with a meaning special to one command."""
EXIT_STATUS = """\
0 when all went well, 1 when something failed (standard error says what, a line for each), 2 for a mistake on the
command line, 130 after Ctrl-C. status ends with 3 unless all the devices run, and vmm where the guest's kernel has
panicked. Each command's page, as bellwire\\-status(1), has its own."""
ENVIRONMENT = """\
NO_COLOR turns colours off. XDG_CONFIG_HOME, XDG_DATA_HOME and XDG_RUNTIME_DIR say where a user's own configuration,
plugins and sockets are."""
FILES = """\
/etc/bellwire, /run/bellwire, /usr/local/lib/bellwire and /usr/lib/bellwire have the system's configuration and
plugins. /run/bellwire/control is its control socket, and /run/bellwire/NAME.sock a device's. For users other than root,
the XDG folders take their place: $XDG_CONFIG_HOME/bellwire, $XDG_RUNTIME_DIR/bellwire and $XDG_DATA_HOME/bellwire."""
ENDS = """\
0 after SIGTERM or SIGINT, 1 when something failed, 2 for a mistake on the command line, and 78 (EX_CONFIG) when a
restart would not help: a folder is missing, cannot be read, or may be written by another user."""
SIGNALS = """\
SIGHUP reads the configuration again, and touches only what has changed. SIGTERM and SIGINT stop every device in
order."""
SEE_ALSO = (".SH SEE ALSO", r".BR bellwire (1), bellwired (8), bellwire\-device.toml (5)")
EXAMPLES = {
    "bellwire": """\
bellwire demo
bellwire run ./my_nic.py \\-o rate=100
bellwire new my_nic \\-\\-kind dma\\-ring
bellwire list
bellwire qemu\\-args my_nic""",
    "bellwire boot": """\
bellwire boot ./copier.py
bellwire boot ./copier.py \\-\\-module driver/copier.ko \\-\\- ./test.sh
bellwire boot \\-\\-build driver
bellwire boot nvme ./copier.py \\-\\-kernel ../linux \\-\\-share .""",
    "bellwired": """\
bellwired \\-\\-config\\-dir ./conf \\-\\-runtime\\-dir ./run
bellwire list \\-\\-runtime\\-dir ./run""",
}


def pages() -> dict[str, str]:
    """Every page's file name and content."""
    top = cli.parser()
    found = {
        "bellwire.1": _page(top, "1", {"exit status": EXIT_STATUS, "environment": ENVIRONMENT, "files": FILES}),
        "bellwired.8": _page(daemon.parser(), "8", {"exit status": ENDS, "signals": SIGNALS, "files": FILES}),
        "bellwire-device.toml.5": _settings(),
    }
    found |= {f"bellwire-{name}.1": _command(name, parser) for name, parser in commands(top).items()}
    return found | {f"bellwire-{name}.7": _device(kind) for name, kind in bundled().items()}


def commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands' own parsers."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= action.choices
    return found


def statuses(command: str) -> dict[int, str]:
    """A command's exit statuses, and what each means."""
    return dict(sorted({**STATUSES, **OWN_STATUSES.get(command, {})}.items()))


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
    """Write the pages into the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Writes the manual pages.")
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(words).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pages().items():
        (folder / name).write_text(content)
    return 0


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    ends = [line for status, about in statuses(name).items() for line in (".TP", f".B {status}", _plain(about))]
    return _page(parser, "1", {"exit status": "\n".join(ends)})


def _page(parser: argparse.ArgumentParser, section: str, texts: dict[str, str]) -> str:
    from argparse_manpage.manpage import Manpage

    about = (parser.description or "").split(". ")[0].rstrip(".").replace("\n", " ")
    title = parser.prog.replace(" ", "-")
    lines = [_head(title, section), *str(Manpage(parser, format="pretty")).splitlines()[1:]]
    name = lines.index(".SH NAME") + 1
    lines[name] = f"{_plain(title)} \\- {_plain(about)}"
    for heading, body in texts.items():
        lines += [f".SH {heading.upper()}", *body.splitlines()]
    if parser.prog in EXAMPLES:
        lines += [".SH EXAMPLES", ".nf", *EXAMPLES[parser.prog].splitlines(), ".fi"]
    return "\n".join([*lines, *SEE_ALSO]) + "\n"


def _device(kind: type[PciDevice]) -> str:
    about, _, rest = (inspect.getdoc(kind) or "").partition("\n\n")
    about = " ".join(about.split())
    lines = [_head(f"bellwire-{kind.name}", "7"), ".SH NAME"]
    lines += [f"{_plain(f'bellwire-{kind.name}')} \\- {_plain(about.rstrip('.'))}"]
    lines += [".SH SYNOPSIS", f".B bellwire run {_plain(kind.name)}", r"[\-o \fIKEY\fR=\fIVALUE\fR]..."]
    lines += [".SH DESCRIPTION"]
    for paragraph in filter(None, [about, *rest.split("\n\n")]):
        lines += [".PP", _plain(" ".join(re.sub(r":\w+:`([^`]*)`|``", r"\1", paragraph).split()))]
    lines += [".SH OPTIONS", "With", r".BR bellwire\-run (1)", r"by \-o, and in a device's file below [options]."]
    for name, option in sorted(kind.layout.options.items()):
        default = option.text(option.default)
        words = [f"{option.help[:1].upper()}{option.help[1:]}." if option.help else ""]
        words += [f"Allowed: {option.allowed}." if option.allowed else "", f"Default: {default}." if default else ""]
        words += ["May be changed while the guest runs." if ("set", option) in kind.layout.hooks else ""]
        lines += [".TP", f'.BR {_plain(name)} " = " {option.type_name}', _plain(" ".join(filter(None, words)))]
    lines += [".SH EXAMPLE", ".nf", f'device = "{_plain(kind.name)}"', ".fi"]
    return "\n".join([*lines, *SEE_ALSO]) + "\n"


def _head(title: str, section: str) -> str:
    return f'.TH {title.upper()} {section} "" Bellwire "Bellwire\'s manual"'


def _plain(text: str) -> str:
    """Text with troff's special characters escaped."""
    return text.replace("\\", r"\e").replace("-", r"\-")


def _settings() -> str:
    lines = ['.TH BELLWIRE-DEVICE.TOML 5 "" Bellwire "Bellwire\'s manual"', ".SH NAME"]
    lines += ["bellwire\\-device.toml, bellwired.toml \\- the daemon's configuration files", ".SH DESCRIPTION"]
    lines += [
        "One file for each device, devices.d/NAME.toml, and bellwired.toml for the daemon itself, below /etc/bellwire,",
        "/run/bellwire (if it belongs to root), /usr/local/lib/bellwire or /usr/lib/bellwire. A file in an earlier",
        "folder overrides one of the same name in a later one; an empty file, or a link to /dev/null, masks it. A file",
        "that cannot be used hurts no other device. A file that another user can have put there cannot be used.",
        ".PP",
        "A drop-in, devices.d/NAME.toml.d/*.toml in any of the folders, changes some of the keys and options of a",
        "device's file. Relative paths of a device and in its options are meant from the folder of its file.",
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
