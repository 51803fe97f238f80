"""``bellwire export``: what a driver must know of a device, in the driver's own language."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from bellwire.paths import Place
from bellwired.commands.completion import KINDS, completed
from bellwired.errors import CommandError
from bellwired.find import find_device
from bellwired.places import Places

FORMATS = {
    "c-header": ("to_c", "write"),
    "rust": ("to_rust", "write"),
    "rdl": ("to_rdl", "write"),
    "markdown": ("to_markdown", "write"),
    "json": ("to_json", "write"),
    "json-schema": ("to_json", "write_schema"),
}
"""The module and the function that write each format. They are loaded when they are asked for."""


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "export",
        help="write a device's register map as a header, a page, SystemRDL or JSON",
        description="Writes a device's register map for its driver and its readers. The map has BARs, registers, "
        "fields, doorbells, interrupts and IDs. It is read from the device's declarations, so it cannot differ from "
        "the device.",
        parents=[shared],
    )
    completed(parser.add_argument("device", metavar="DEVICE|FILE.py", help="as bellwire run takes it"), KINDS)
    parser.add_argument(
        "--as", dest="format", choices=FORMATS, required=True, metavar="FORMAT", help=f"one of {', '.join(FORMATS)}"
    )
    parser.add_argument("-w", "--output", type=Path, metavar="FILE", help="where to write it (default: print it)")
    parser.set_defaults(command=export)


def export(arguments: argparse.Namespace) -> int:
    """``bellwire export DEVICE --as FORMAT``."""
    from bellwired.maps import from_device

    device = find_device(arguments.device, Places.of(arguments.config_dir, arguments.runtime_dir).plugins)
    module, function = FORMATS[arguments.format]
    text = getattr(importlib.import_module(f"bellwired.maps.{module}"), function)(from_device.read(device))
    if arguments.output is None:
        sys.stdout.write(text)
        return 0
    write(arguments.output, text)
    return 0


def write(path: Path, text: str) -> None:
    """Replace a file as a whole, so that a reader never sees half of it. A CommandError names the file."""
    try:
        with Place(path) as place:
            place.replace(text.encode())
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from None
