"""``bellwire sandbox NAME``: explains the box around a device, part by part."""

from __future__ import annotations

import argparse
from typing import Any

from bellwired.commands import show
from bellwired.commands.completion import DEVICES, completed
from bellwired.commands.control_client import method
from bellwired.commands.operate import instance
from bellwired.errors import CommandError

COLOURS = {"here": "green", "missing": "yellow", "off": "dim"}


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "sandbox",
        help="explain the box around a device: what it may do, and what this system lacks",
        description="Explain the box around a device's worker, part by part: what it may do, which parts this system "
        "does not have, and what to do about that.",
        parents=[shared],
    )
    completed(parser.add_argument("name"), DEVICES)
    parser.set_defaults(command=sandbox)


def sandbox(arguments: argparse.Namespace) -> int:
    """``bellwire sandbox NAME``."""
    device = method(instance(arguments), "Describe", name=arguments.name)["device"]
    parts = device["box"]
    if arguments.json:
        show.as_json({"name": device["name"], "parts": parts})
        return 0
    if not parts:
        raise CommandError(f"{device['name']} is in no box: {device['state']}", f"bellwire start {device['name']}")
    out = show.console()
    width = max(len(part["name"]) for part in parts)
    for part in parts:
        colour = COLOURS.get(part["state"], "")
        out.print(f"{part['name']:>{width}}: [{colour}]{part['state']}[/{colour}]: {show.text(part['about'])}")
        if part["hint"]:
            out.print(f"{'':>{width}}  {show.text(part['hint'])}")
    return 0
