"""The commands that need no daemon: plugins and new."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bellwired.commands import show, template
from bellwired.commands.show import Column
from bellwired.find import plugins
from bellwired.places import Places, warn_of_what_is_not_read


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the commands; ``shared`` has the flags that all of them take."""
    parser = commands.add_parser(
        "plugins",
        help="list the devices that can be run",
        description="Lists bundled devices, entry points and plugins; a plugin that cannot be used, with its error.",
        parents=[shared],
    )
    parser.set_defaults(command=list_plugins)
    parser = commands.add_parser(
        "new",
        help="write a new device, its test, and drivers for it",
        description="Writes a working device to start from, its test and configuration, a driver for Linux in C, and "
        "one in user space in Python. The kinds: "
        + "; ".join(f"{kind} ({what})" for kind, what in template.KINDS.items())
        + ".",
        parents=[shared],
    )
    parser.add_argument("name", help="a Python identifier in lower case, as in my_nic")
    parser.add_argument(
        "--kind",
        choices=template.KINDS,
        default=template.PLAIN,
        metavar="KIND",
        help=f"one of {', '.join(template.KINDS)} (default: {template.PLAIN})",
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", help="the folder for the files (default: a new one, NAME)"
    )
    parser.set_defaults(command=new)


def list_plugins(arguments: argparse.Namespace) -> int:
    """``bellwire plugins``."""
    warn_of_what_is_not_read()
    listed = plugins(Places.of(arguments.config_dir, arguments.runtime_dir, whose=arguments.whose or "").plugins)
    if arguments.json:
        fields = ("name", "source", "description", "error")
        show.as_json([{key: getattr(each, key) for key in fields} for each in listed])
        return 0
    columns = Column("device"), Column("from", 1), Column("what it is")
    rows = [
        (
            show.text(each.name),
            show.text(each.source),
            f"[red]{show.text(each.error)}[/red]" if each.error else show.text(each.description),
        )
        for each in listed
    ]
    show.console().print(show.table(columns, rows))
    return 0


def new(arguments: argparse.Namespace) -> int:
    """``bellwire new NAME``."""
    folder = Path(arguments.name) if arguments.directory is None else arguments.directory
    written = template.write(arguments.name, folder, arguments.kind)
    if arguments.json:
        show.as_json([str(path) for path in written])
        return 0
    width = max(len(str(path)) for path in written)
    for path, about in written.items():
        print(f"{path!s:{width}}  {about}")
    device = next(iter(written))
    print(f"Try it: bellwire run {device}" if device.is_absolute() else f"Try it: bellwire run ./{device}")
    print(f"Test it, in Linux too: pytest {folder}")
    return 0
