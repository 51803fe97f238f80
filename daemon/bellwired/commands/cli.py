"""The ``bellwire`` command line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import shtab

from bellwire import BellwireError
from bellwire_vmm.errors import VmmError
from bellwired.commands import cat_config, check, demo, edit, enable, inspect_files, install, operate, run, show, vmm
from bellwired.commands.parser import Parser
from bellwired.errors import CommandError
from bellwired.manager.main import add_places
from bellwired.release import release
from kvm_ioctls import KvmError
from vfio_user import VfioUserError

LONGEST = 1_000_000  # seconds: twelve days
SHARED = ("config_dir", "runtime_dir", "json", "wait", "timeout")
"""Flags of several commands, which may stand before the command, too."""
LEVELS = ("debug", "info", "warning", "error")


def parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    top = Parser(
        prog="bellwire",
        description="Write a PCI device in Python, plug it into any VM, and let its doorbells ring straight from KVM.",
    )
    top.add_argument("--version", action="version", version=f"bellwire {release()}")
    for add in (_add_level, _add_shared, _add_asking):
        add(top)
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (run, vmm, demo):
        module.add_parser(commands)
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    _add_shared(shared)
    shared.set_defaults(takes=SHARED[:3])
    asking = argparse.ArgumentParser(add_help=False, parents=[shared], argument_default=argparse.SUPPRESS)
    _add_asking(asking)
    asking.set_defaults(takes=SHARED)
    for group in (operate, enable, edit, cat_config):
        group.add_parsers(commands, asking)
    for group in (check, inspect_files):
        group.add_parsers(commands, shared)
    install.add_parsers(commands)
    for command in set(commands.choices.values()):
        _add_level(command, default=argparse.SUPPRESS)
    shtab.add_argument_to(top, "--print-completion", help="print a completion script for a shell")
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; its exit status. Errors become one line, with a hint where there is one."""
    top = parser()
    arguments = top.parse_args(words)
    for given in SHARED:
        if getattr(arguments, given) and given not in getattr(arguments, "takes", ()):
            top.error(f"--{given.replace('_', '-')} is for other commands than this")
    logging.basicConfig(level=arguments.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    try:
        status: int = arguments.command(arguments)
        sys.stdout.flush()
    except CommandError as error:
        show.errors([error], in_json=getattr(arguments, "json", False))
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left: no more to say
        return 1
    except (BellwireError, VfioUserError, VmmError, KvmError) as error:
        print(f"bellwire: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"bellwire: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _add_level(parser: argparse.ArgumentParser, default: str = "info") -> None:
    parser.add_argument(
        "--log-level", choices=LEVELS, default=default, help="what to log to standard error (default info)"
    )


def _add_shared(parser: argparse.ArgumentParser) -> None:
    add_places(parser)
    parser.add_argument(
        "--json", action="store_true", help="print JSON instead of tables and words, and for errors too"
    )


def _add_asking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait", action="store_true", help="wait for the daemon to be there, and with status for devices"
    )
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="for how long at most (default 300)")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0 and at most {LONGEST}, got {text!r}")
    return seconds
