"""``bellwire install`` and ``bellwire uninstall``: the files that pip does not install."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bellwire.paths import PathError, Place, check_folder, make_folders
from bellwire.trust import asking_users
from bellwired.errors import CommandError
from bellwired.install import record
from bellwired.install.layout import Layout

PREFIX = Path("/usr/local")
NEXT_FOR_ALL = """\
To run the daemon: systemd-sysusers && systemctl daemon-reload
                   systemctl enable --now bellwired.socket bellwired.service"""
NEXT_FOR_ONE = """\
To run a daemon of your own: systemctl --user daemon-reload
                             systemctl --user enable --now bellwired.socket bellwired.service"""


def add_parser(commands: Any) -> None:
    """Declare the commands."""
    shared = argparse.ArgumentParser(add_help=False)
    whose = shared.add_mutually_exclusive_group()
    whose.add_argument("--user", action="store_true", help="into the user's home (default unless root)")
    whose.add_argument("--system", action="store_true", help="for all users (default for root)")
    shared.add_argument(
        "--prefix",
        type=Path,
        default=PREFIX,
        metavar="DIR",
        help=f"with --system: the folder to install below (default {PREFIX})",
    )
    shared.add_argument(
        "--destdir",
        type=Path,
        metavar="DIR",
        help="for packages: write below this folder, for use without it",
    )
    parser = commands.add_parser(
        "install",
        help="add the manual pages, completions, units and commands that pip does not install",
        description="Writes manual pages, completions, systemd units and their files, and the commands if they "
        "are not on the PATH. It lists what it has written, for `bellwire uninstall`.",
        parents=[shared],
    )
    parser.set_defaults(command=install)
    parser = commands.add_parser(
        "uninstall",
        help="remove what `bellwire install` has written",
        description="Removes what `bellwire install` has written. Configuration stays, and what pip has installed.",
        parents=[shared],
    )
    parser.set_defaults(command=uninstall)


def install(arguments: argparse.Namespace) -> int:
    """``bellwire install``."""
    from bellwired.install import contents  # it needs the parser that is being made where this module is loaded

    layout, destination = _places(arguments)
    if layout.system is not None:
        os.umask(0o022)  # all users read it
    before = _read(layout, destination)
    files = list(contents.files(layout, destination))
    for file in files:
        if str(file.path) not in before and os.path.lexists(record.staged(file.path, destination)):
            raise CommandError(
                f"{file.path} is there already, and `bellwire install` has not written it",
                "remove what has brought it, or choose another --prefix",
            )
    lines = [*(str(file.path) for file in files), str(layout.record), f"{layout.library}/"]
    for folder in (layout.library, *contents.folders(layout), *(file.path.parent for file in files)):
        lines += _make_folder(folder, destination)
    kept = [line for line in before if line.endswith("/")]
    _write_record(layout, destination, (*before, *lines))
    for file in files:
        with Place(record.staged(file.path, destination), follow=False) as place:
            place.replace(file.content.encode(), file.mode if layout.system is not None else file.mode & ~_umask())
    record.remove(set(before) - {*lines, *kept}, destination)
    _write_record(layout, destination, (*kept, *lines))
    print(f"{len(files)} files written; their list: {layout.record}")
    if destination is None:
        print(NEXT_FOR_ONE if layout.system is None else NEXT_FOR_ALL)
    return 0


def uninstall(arguments: argparse.Namespace) -> int:
    """``bellwire uninstall``."""
    layout, destination = _places(arguments)
    lines = _read(layout, destination)
    if not lines:
        raise CommandError(
            f"{layout.record}: no such file, so `bellwire install` has written nothing there",
            "--user, --system and --prefix as they were given to `bellwire install`",
        )
    record.remove(lines, destination)
    print(f"{sum(not line.endswith('/') for line in lines)} files removed")
    return 0


def _places(arguments: argparse.Namespace) -> tuple[Layout, Path | None]:
    destination = arguments.destdir.absolute() if arguments.destdir else None
    if arguments.user or (not arguments.system and os.geteuid() != 0):
        layout = Layout.for_one()
    else:
        layout = Layout.for_all(arguments.prefix.absolute())
    if not layout.startable:
        raise CommandError(
            f"{str(layout.bin)!r}: systemd starts no command from a folder with a quote, a backslash or a control "
            "character in its path",
            "choose another --prefix",
        )
    if destination is None:
        _check(layout)
    return layout, destination


def _check(layout: Layout) -> None:
    """Refuse folders that another user could exchange for others: what is written and removed there would be chosen."""
    try:
        for folder in (layout.library, layout.bin, layout.share, layout.configuration, layout.user_units):
            check_folder(folder, asking_users())
    except PathError as error:
        hint = f"{error.hint}; or install for one user, as that user: bellwire install --user"
        raise CommandError(f"{error.filename}: {error.strerror}", hint) from None


def _make_folder(path: Path, destination: Path | None) -> list[str]:
    """Create a folder and its parents. Returns the created ones, for the record."""
    if destination is not None:
        make_folders(destination)
    made = []
    for folder in (*reversed(path.parents), path):
        with Place(record.staged(folder, destination)) as place:
            if place.make_folder():
                made.append(f"{folder}/")
    return made


def _write_record(layout: Layout, destination: Path | None, lines: Iterable[str]) -> None:
    text = "".join(f"{line}\n" for line in sorted(set(lines)))
    with Place(record.staged(layout.record, destination), follow=False) as place:
        place.replace(text.encode())


def _read(layout: Layout, destination: Path | None) -> list[str]:
    try:
        return record.read(record.staged(layout.record, destination))
    except ValueError as error:
        raise CommandError(str(error)) from None


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask
