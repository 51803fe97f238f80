"""``bellwire cat-config``: the configuration in effect, and the files that set it."""

from __future__ import annotations

import argparse
import contextlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bellwired import settings, terminal, toml_file
from bellwired.commands import complaints, show
from bellwired.commands.check import examine
from bellwired.commands.completion import DEVICES, completed
from bellwired.commands.drop_in import configuration, source
from bellwired.errors import CommandError
from bellwired.places import Places

Origins = dict[str, tuple[Any, Path, int]]
"""Each key in effect: its value, and the file and line that set it."""


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "cat-config",
        help="show the configuration files in effect, and check them",
        description="Shows every configuration file in effect, in order, with its path, as the daemon would read it. "
        "Checks the devices' options too, for which their plugins are imported. With the name of a device, its file "
        "and drop-ins, and then each key in effect with the file and line that set it. Ends with status 1 if "
        "a file cannot be used.",
        parents=[shared],
    )
    completed(parser.add_argument("name", nargs="?", help="only the files of this device"), DEVICES)
    parser.set_defaults(command=cat_config)


def cat_config(arguments: argparse.Namespace) -> int:
    """``bellwire cat-config [NAME]``."""
    places = configuration(arguments).places
    if arguments.name:
        return _of_one(places, arguments.name, arguments.json)
    found = settings.load(places)
    errors: dict[str, CommandError] = {**found.errors}
    if found.faults:
        errors[settings.DAEMON] = CommandError("; ".join(map(str, found.faults)), found.faults[0].hint)
    for name in found.devices:
        try:
            examine(found.sources[name], settings.drop_ins(places, name), places)
        except CommandError as error:
            errors[name] = error
    files = list(settings.used(places))
    if arguments.json:
        show.as_json(
            {
                "files": [str(path) for path in files],
                "daemon": settings.plain(found.daemon),
                "devices": {name: settings.plain(device) for name, device in found.devices.items()},
                "errors": {name: str(error) for name, error in errors.items()},
            }
        )
    else:
        _cat(files)
        if not files:
            print(terminal.line(f"# no files in {', '.join(map(str, places.config))}"))
    complaints.errors(errors.values(), in_json=arguments.json)
    return 1 if errors else 0


def _of_one(places: Places, name: str, in_json: bool) -> int:
    files = [source(places, name), *settings.drop_ins(places, name)]
    error: CommandError | None = None
    found: Origins = {}
    try:
        found = origins(files)
        examine(files[0], files[1:], places)
    except CommandError as caught:
        error = caught
    if in_json:
        keys = {key: {"value": value, "file": str(file), "line": line} for key, (value, file, line) in found.items()}
        show.as_json({"files": [str(path) for path in files], "keys": keys, "error": str(error) if error else ""})
    else:
        _cat(files)
        lines = [
            (terminal.line(f"{key} = {terminal.json_text(value)}"), f"# {terminal.line(file)}:{line}")
            for key, (value, file, line) in found.items()
        ]
        width = max((len(said) for said, _ in lines), default=0)
        print(
            "# what counts, and where it comes from", *(f"{said:{width}}  {where}" for said, where in lines), sep="\n"
        )
    complaints.errors([error] if error else [], in_json=in_json)
    return 1 if error else 0


def origins(files: list[Path]) -> Origins:
    """The keys of a device's file and its drop-ins, options one by one. A later file overrides."""
    found: Origins = {}
    for file in files:
        values = dict(_flat(settings.table(file)))
        lines = _lines(toml_file.text(file))
        found |= {key: (value, file, lines[key]) for key, value in values.items()}
    return found


def _lines(text: str) -> dict[str, int]:
    """The line (from 1) with which each key's value is complete: the shortest beginning of the file that has it."""
    found: dict[str, int] = {}
    lines = text.splitlines(keepends=True)
    for number in range(1, len(lines) + 1):
        with contextlib.suppress(tomllib.TOMLDecodeError):  # the cut is inside a value
            for key, _ in _flat(tomllib.loads("".join(lines[:number]))):
                found.setdefault(key, number)
    return found


def _flat(table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", each) for inner, each in value.items())
        else:
            yield key, value


def _cat(files: list[Path]) -> None:
    for path in files:
        print(f"# {terminal.line(path)}")
        with contextlib.suppress(CommandError):  # reported among the errors
            print(toml_file.text(path).rstrip("\n"))
        print()
