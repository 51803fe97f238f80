"""Writes drop-ins for a device into the first configuration folder."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bellwire.paths import PathError, Place, check_folder, make_folders
from bellwired import settings, toml_file
from bellwired.commands.control_client import Instance, NoDaemonError, method
from bellwired.commands.operate import instance
from bellwired.errors import CommandError
from bellwired.places import Places
from bellwired.settings import DEVICES, SUFFIX


def configuration(arguments: argparse.Namespace) -> Instance:
    """The instance that the flags name, with its configuration where the daemon itself looks for it, if one runs.

    With ``--config-dir`` the daemon is not asked. Without flags a user's files are the user's own.
    """
    found = replace(instance(arguments), other=None)
    if arguments.config_dir is None:
        with contextlib.suppress(NoDaemonError):
            folders = tuple(map(Path, method(found, "Folders")["folders"]))
            plugins = tuple(folder / "plugins" for folder in folders) + found.places.plugins[len(found.places.config) :]
            return replace(found, places=Places(folders, plugins, found.places.runtime, found.places.whose))
    return found


def source(places: Places, name: str) -> Path:
    """A device's file. Raises a CommandError if there is none."""
    there = settings.load(places).sources
    if name not in there:
        near = difflib.get_close_matches(name, there, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(there)) or 'none yet'}"
        raise CommandError(f"there is no file for a device {name!r}", hint)
    return there[name]


def path(places: Places, name: str, drop_in: str) -> Path:
    """The path of the drop-in with this name."""
    return places.config[0] / DEVICES / f"{name}{SUFFIX}.d" / f"{drop_in}{SUFFIX}"


def put(daemon: Instance, name: str, file: Path, content: str | None, check: Callable[[], object]) -> bool:
    """Write ``content`` into ``file``, or remove it, and reload the daemon. False if no daemon runs.

    If ``check()`` or the daemon refuses it, the old content is restored, and a CommandError says why.
    """
    before = read(file)
    write(file, content)
    try:
        check()
        return take_up(daemon, name)
    except BaseException:
        write(file, before)
        with contextlib.suppress(CommandError):
            take_up(daemon, name)
        raise


def read(file: Path) -> str | None:
    """The file's content; None without a file."""
    return toml_file.text(file) if os.path.lexists(file) else None


def take_up(daemon: Instance, name: str) -> bool:
    """Have the daemon read the configuration again; False if none runs. A CommandError if ``name`` cannot be used."""
    try:
        failed = method(daemon, "Reload")["outcome"]["failed"]
    except NoDaemonError:
        return False
    if name in failed:
        raise CommandError(failed[name])
    return True


def write(file: Path, content: str | None) -> None:
    """Write or remove a file atomically. Also remove its folder if that is empty then.

    A folder that another user may change is refused: the daemon, which names the folders, may have been taken over.
    """
    try:
        check_folder(file.parent)
        if content is None:
            if os.path.lexists(file):
                with Place(file, follow=False) as place:
                    place.remove()
                with Place(file.parent, follow=False) as place:
                    place.remove_folder()
            return
        make_folders(file.parent, 0o755, exact=True)  # whatever the umask: the daemon may be another user
        with Place(file, follow=False) as place:
            place.replace(content.encode(), 0o644)
    except PathError as error:
        raise CommandError(f"{error.filename}: {error.strerror}", error.hint) from None
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}", "be root, or the user whose configuration it is") from None
