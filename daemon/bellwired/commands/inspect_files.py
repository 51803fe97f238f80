"""The commands that need no daemon: cat-config, plugins, and new."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from bellwire import BellwireError
from bellwire.declare.option import parse_options
from bellwired import settings
from bellwired.commands import show, template
from bellwired.errors import CommandError
from bellwired.find import find_trusted, plugins
from bellwired.places import Places


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the commands; ``shared`` has the flags that all of them take."""
    parser = commands.add_parser(
        "cat-config",
        help="show the configuration files that count, and check them",
        description="Shows every configuration file that counts, in order, with its path, as the daemon would read it. "
        "Checks the devices' options too, for which their plugins are imported. Ends with status 1 if one cannot be "
        "used.",
        parents=[shared],
    )
    parser.set_defaults(command=cat_config)
    parser = commands.add_parser(
        "plugins",
        help="list the devices that can be run",
        description="Lists bundled devices, entry points and plugins; a plugin that cannot be used, with its error.",
        parents=[shared],
    )
    parser.set_defaults(command=list_plugins)
    parser = commands.add_parser(
        "new",
        help="write a new device, its test and its configuration",
        description="Writes NAME.py, test_NAME.py and NAME.toml: a working device to start from.",
        parents=[shared],
    )
    parser.add_argument("name", help="a Python identifier in lower case, as in my_nic")
    parser.add_argument("--directory", type=Path, default=Path(), metavar="DIR", help="where to (default: here)")
    parser.set_defaults(command=new)


def cat_config(arguments: argparse.Namespace) -> int:
    """``bellwire cat-config``."""
    places = Places.of(arguments.config_dir, arguments.runtime_dir)
    found = settings.load(places)
    errors: dict[str, CommandError] = {**found.errors}
    for name, device in found.devices.items():
        try:
            kind = find_trusted(device.device, places.plugins)
            parse_options(kind.layout.options, device.options, kind.name)
        except BellwireError as error:
            errors[name] = CommandError(f"{found.sources[name]}: {error}", getattr(error, "hint", ""))
    if arguments.json:
        show.as_json(
            {
                "files": [str(path) for path in settings.used(places)],
                "daemon": settings.plain(found.daemon),
                "devices": {name: settings.plain(device) for name, device in found.devices.items()},
                "errors": {name: str(error) for name, error in errors.items()},
            }
        )
    else:
        for path in settings.used(places):
            print(f"# {path}")
            with contextlib.suppress(OSError):  # which is among the errors
                print(path.read_text(errors="replace").rstrip("\n"))
            print()
        if not list(settings.used(places)):
            print(f"# no files in {', '.join(map(str, places.config))}")
    show.errors(errors.values())
    return 1 if errors else 0


def list_plugins(arguments: argparse.Namespace) -> int:
    """``bellwire plugins``."""
    listed = plugins(Places.of(arguments.config_dir, arguments.runtime_dir).plugins)
    if arguments.json:
        fields = ("name", "source", "description", "error")
        show.as_json([{key: getattr(each, key) for key in fields} for each in listed])
        return 0
    table = show.table("device", "from", "what it is")
    for each in listed:
        about = f"[red]{show.text(each.error)}[/red]" if each.error else show.text(each.description)
        table.add_row(show.text(each.name), show.text(each.source), about)
    show.console().print(table)
    return 0


def new(arguments: argparse.Namespace) -> int:
    """``bellwire new NAME``."""
    written = template.write(arguments.name, arguments.directory)
    if arguments.json:
        show.as_json([str(path) for path in written])
        return 0
    device, test, config = written
    print(f"{device}  the device\n{test}  its test: pytest {test}\n{config}  its configuration, for devices.d")
    print(f"Try it: bellwire run ./{device}" if not device.is_absolute() else f"Try it: bellwire run {device}")
    return 0
