"""Which options of ``bellwire vmm`` go together."""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path
from typing import Any

from bellwired.errors import CommandError

DEFAULTS: dict[str, Any] = {"pause": 0.5, "rounds": 30}
_BOOTED, _COMING = ("--guest", "--kernel"), ("--restore", "--listen")
FOR = {
    "parameters": ("--guest",),
    "initrd": ("--kernel",),
    "append": ("--kernel",),
    "no_reboot": ("--kernel",),
    "console": ("--kernel", *_COMING),
    "when": ("--kernel", *_COMING),
    "memory": _BOOTED,
    "cpus": _BOOTED,
}
"""Which options go with which kind of guest. All others go with each."""
_READ = "kernel", "initrd", "parameters"
_PATHS = (*_READ, "restore", "listen", "save", "migrate_to", "console", "figures")


def refuse(arguments: argparse.Namespace) -> None:
    """Raise CommandError for options that would have no effect with the others, or that destroy what another names."""
    what = next(name for name in (*_BOOTED, *_COMING) if getattr(arguments, name[2:]))
    for option, others in FOR.items():
        if getattr(arguments, option) and what not in others:
            raise CommandError(f"{_name(option)} is for {' and '.join(', '.join(others).rsplit(', ', 1))}")
    leaves = arguments.save or arguments.migrate_to
    for option in ("at", "when", "figures"):
        if getattr(arguments, option) is not None and not leaves:
            raise CommandError(f"{_name(option)} needs --save or --migrate-to")
    for option, value in DEFAULTS.items():
        if getattr(arguments, option) != value and not arguments.migrate_to:
            raise CommandError(f"{_name(option)} needs --migrate-to")
    _refuse_one_file_twice(arguments)


def for_linux_alone(arguments: argparse.Namespace) -> None:
    """Raise CommandError for options that would have no effect, since the guest that comes is a micro guest."""
    for option in ("console", "when"):
        if getattr(arguments, option):
            raise CommandError(f"{_name(option)} is for Linux, and the guest that comes is a micro guest")


def _refuse_one_file_twice(arguments: argparse.Namespace) -> None:
    """What one option reads, or has written, is lost if another one writes there."""
    given = [(option, Path(path)) for option in _PATHS if (path := getattr(arguments, option)) and str(path) != "-"]
    for (one, path), (other, second) in itertools.combinations(given, 2):
        if {one, other} <= set(_READ) or (one, other) == (
            "restore",
            "save",
        ):  # a save makes a new file in the old one's place
            continue
        if _same(path, second):
            raise CommandError(f"{_name(one)} and {_name(other)} are the same file: {path}", "give each one of its own")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other) and not (one.is_char_device() or one.is_fifo())  # /dev/null may be both
    except OSError:  # one is not there yet
        return os.path.realpath(one) == os.path.realpath(other)


def _name(option: str) -> str:
    return "--json" if option == "figures" else f"--{option.replace('_', '-')}"
