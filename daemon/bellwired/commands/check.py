"""``bellwire check``: whether configuration files are valid, before they take effect."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bellwire import BellwireError
from bellwire.declare.option import parse_options
from bellwired import settings
from bellwired.commands import complaints, show
from bellwired.errors import CommandError
from bellwired.filtering import all_made
from bellwired.find import find_trusted
from bellwired.listen import refuse_live
from bellwired.places import Places
from bellwired.settings import DAEMON, DEVICES, NAME, SUFFIX, Daemon, Device


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "check",
        help="check configuration files, wherever they lie",
        description="Checks files for devices, with the drop-ins beside them (FILE.d), or one called bellwired.toml: "
        "keys, values, and the devices' options, for which their plugins are imported. Without FILE, the files in "
        "effect. Ends with status 1 if one cannot be used.",
        parents=[shared],
    )
    parser.add_argument("file", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--no-import", action="store_true", help="import no plugin, so check no options")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="only check that no server listens at PATH")
    parser.set_defaults(command=check)


def check(arguments: argparse.Namespace) -> int:
    """``bellwire check [FILE...]``."""
    if arguments.socket is not None:
        refuse_live(arguments.socket)
        return 0
    places = Places.of(arguments.config_dir, arguments.runtime_dir, whose=arguments.whose or "")
    importing = not arguments.no_import
    failed: dict[str, list[CommandError]] = {}
    if arguments.file:
        for file in arguments.file:
            failed[str(file)] = _faults(file, sorted(Path(f"{file}.d").glob(f"[!.]*{SUFFIX}")), places, importing)
    else:
        main = places.file(DAEMON)
        for file in [*([main] if main else []), *places.files(DEVICES, SUFFIX)]:
            over = settings.drop_ins(places, file.name.removesuffix(SUFFIX))
            failed[str(file)] = _faults(file, over, places, importing)
    errors = [error for found in failed.values() for error in found]
    if arguments.json:
        show.as_json({file: "; ".join(map(str, found)) for file, found in failed.items()})
    complaints.errors(errors, in_json=arguments.json)
    return 1 if errors else 0


def _faults(file: Path, over: Sequence[Path], places: Places, importing: bool) -> list[CommandError]:
    """What is wrong with one file, and where."""
    if file.name == DAEMON:
        daemon, faults = settings.tolerant(file)
        return [*faults, *_address(file, daemon)]
    try:
        examine_file(file, over, places, importing)
    except CommandError as error:
        return [error]
    return []


def _address(file: Path, daemon: Daemon) -> Iterator[CommandError]:
    where = daemon.metrics
    kind, _, rest = where.partition(":")
    port = where.rpartition(":")[2]
    if where and not (kind == "unix" and rest) and not (where != port and port.isdecimal() and int(port) < 1 << 16):
        yield CommandError(f"{file}: metrics = {where!r}", "write unix:PATH or ADDRESS:PORT")


def examine_file(file: Path, over: Sequence[Path], places: Places, importing: bool = True) -> None:
    """Check a device's file with its drop-ins. Raises a CommandError that says what is wrong, and where."""
    if file.suffix != SUFFIX or not NAME.fullmatch(file.name.removesuffix(SUFFIX)):
        raise CommandError(f"{file}: a device's file is called NAME.toml, and the daemon's own {DAEMON}")
    if importing:
        examine(file, over, places)
    else:
        settings.device(file, over)


def examine(file: Path, over: Sequence[Path], places: Places) -> Device:
    """Check a device's file with its drop-ins, its options against the device's declarations, and its filters."""
    device = settings.device(file, over)
    try:
        kind = find_trusted(device.device, places.plugins)
        parse_options(kind.layout.options, device.options, kind.name)
        all_made(device.filters, kind)
    except BellwireError as error:
        raise CommandError(f"{file}: {error}", getattr(error, "hint", "")) from None
    return device
