"""``bellwire enable`` and ``bellwire disable``: allow or forbid the start of a device."""

from __future__ import annotations

import argparse
from typing import Any

from bellwired import settings
from bellwired.commands import drop_in
from bellwired.commands.completion import DEVICES, completed
from bellwired.commands.control_client import Instance
from bellwired.commands.operate import matching, try_each
from bellwired.errors import SettingsError

LAST = "zz-enabled"
"""The name of the drop-in: it comes last, so no other overrides it."""
TEXT = "# Written by bellwire enable and bellwire disable.\nenabled = {}\n"


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    for name, work, about, rest in (
        ("enable", True, "let devices start again that were disabled", "Those that start by themselves are started."),
        ("disable", False, "stop devices and let nothing start them, until they are enabled", "A reboot does not."),
    ):
        description = f"{about[0].upper()}{about[1:]}. {rest} Writes a drop-in beside the device's file."
        parser = commands.add_parser(name, help=about, description=description, parents=[shared])
        completed(parser.add_argument("name", nargs="*", help="a device, or a pattern as in 'vm1-*'"), DEVICES)
        parser.add_argument("--all", action="store_true", help="all devices that have a file")
        parser.set_defaults(command=change, enabled=work, mistake=parser.error)


def change(arguments: argparse.Namespace) -> int:
    """Enable or disable each device. A failure of one does not stop the others."""
    daemon = drop_in.configuration(arguments)
    if bool(arguments.name) == arguments.all:
        arguments.mistake("expected names of devices, or --all")
    names = matching(["*"] if arguments.all else arguments.name, lambda: sorted(settings.load(daemon.places).sources))
    return try_each(names, lambda name: _change(daemon, name, arguments.enabled), arguments.json)


def _change(daemon: Instance, name: str, enabled: bool) -> None:
    """Write or remove the drop-in. A device can be disabled even if its file cannot be used."""
    places = daemon.places
    file = drop_in.source(places, name)
    over = drop_in.path(places, name, LAST)
    others = [each for each in settings.drop_ins(places, name) if each != over]
    try:
        anyway = settings.device(file, others).enabled == enabled
    except SettingsError:
        if enabled:
            raise
        anyway = False
    drop_in.write(over, None if anyway else TEXT.format("true" if enabled else "false"))
    drop_in.take_up(daemon, name)
