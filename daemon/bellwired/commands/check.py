"""``bellwire check``: whether configuration files are valid, before they take effect."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bellwire import BellwireError
from bellwire.declare.option import parse_options
from bellwired import settings
from bellwired.commands import show
from bellwired.errors import CommandError
from bellwired.find import find_trusted
from bellwired.places import Places
from bellwired.settings import DAEMON, NAME, SUFFIX, Daemon, Device


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "check",
        help="check configuration files, wherever they lie",
        description="Checks files for devices, with the drop-ins beside them (FILE.d), or one called bellwired.toml: "
        "keys, values, and the devices' options, for which their plugins are imported. Ends with status 1 if one "
        "cannot be used.",
        parents=[shared],
    )
    parser.add_argument("file", nargs="+", type=Path, metavar="FILE")
    parser.set_defaults(command=check)


def check(arguments: argparse.Namespace) -> int:
    """``bellwire check FILE...``."""
    places = Places.of(arguments.config_dir, arguments.runtime_dir)
    failed = {}
    for file in arguments.file:
        try:
            examine_file(file, places)
        except CommandError as error:
            failed[file] = error
    if arguments.json:
        show.as_json({str(file): str(failed.get(file, "")) for file in arguments.file})
    show.errors(failed.values(), in_json=arguments.json)
    return 1 if failed else 0


def examine_file(file: Path, places: Places) -> None:
    """Check one file. Raises a CommandError that says what is wrong, and where."""
    if file.name == DAEMON:
        settings.read(file, Daemon)
        return
    if file.suffix != SUFFIX or not NAME.fullmatch(file.name.removesuffix(SUFFIX)):
        raise CommandError(f"{file}: a device's file is called NAME.toml, and the daemon's own {DAEMON}")
    examine(file, sorted(Path(f"{file}.d").glob(f"[!.]*{SUFFIX}")), places)


def examine(file: Path, over: Sequence[Path], places: Places) -> Device:
    """Check a device's file with its drop-ins, and its options against the device's declarations."""
    device = settings.device(file, over)
    try:
        kind = find_trusted(device.device, places.plugins)
        parse_options(kind.layout.options, device.options, kind.name)
    except BellwireError as error:
        raise CommandError(f"{file}: {error}", getattr(error, "hint", "")) from None
    return device
