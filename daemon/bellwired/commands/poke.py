"""``bellwire poke``: what a guest or the device would do, by hand."""

from __future__ import annotations

import argparse
from typing import Any

from bellwired.commands import show
from bellwired.commands.completion import DEVICES, completed
from bellwired.commands.control_client import method
from bellwired.commands.operate import instance
from bellwired.errors import CommandError


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command; ``shared`` has the flags of all commands that ask a daemon."""
    parser = commands.add_parser(
        "poke",
        parents=[shared],
        help="change a running device's registers, ring its doorbells, raise its interrupts",
        description="Change a running device's registers, ring its doorbells, and raise its interrupts. "
        "In the order given: first the targets, then the interrupt.",
    )
    completed(parser.add_argument("name"), DEVICES)
    parser.add_argument(
        "target",
        nargs="*",
        metavar="TARGET",
        help="REGISTER=VALUE, or DOORBELL or DOORBELL=VALUE; a value is a number or names of flags, as in "
        "'status=DONE|ERROR'",
    )
    parser.add_argument(
        "--guest",
        action="store_true",
        help="write registers as a guest would, so that hooks run and the access word counts; without it the value is "
        "stored as the device would store it",
    )
    parser.add_argument("--interrupt", type=_vector, metavar="VECTOR", help="raise this interrupt; 0 for INTx")
    parser.set_defaults(command=poke, mistake=parser.error, intermixed="target")


def poke(arguments: argparse.Namespace) -> int:
    """``bellwire poke NAME TARGET...``: in that order, up to the first that fails."""
    if not arguments.target and arguments.interrupt is None:
        arguments.mistake("expected REGISTER=VALUE, DOORBELL or --interrupt VECTOR")
    daemon = instance(arguments)
    for word in arguments.target:
        target, equals, value = word.partition("=")
        if not target or (equals and not value):
            raise CommandError(f"{word}: expected REGISTER=VALUE, DOORBELL or DOORBELL=VALUE")
        method(daemon, "Poke", name=arguments.name, target=target, value=value or None, guest=arguments.guest)
    if arguments.interrupt is not None:
        method(daemon, "Interrupt", name=arguments.name, vector=arguments.interrupt)
    if arguments.json:
        show.as_json({"name": arguments.name, "poked": arguments.target})
    return 0


def _vector(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected the number of a vector, got {text!r}")
    return int(text)
