"""Finds the device class that a user names: a bundled device, an entry point, a plugin, or a Python file."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import bellwire.bundled
from bellwire import PciDevice
from bellwire.declare import functions
from bellwired.errors import CommandError
from bellwired.sources import INIT, Open, Sources, first_file, is_path, load, load_again, open_named, open_trusted

GROUP = "bellwire.devices"
Found = dict[str, type[PciDevice]]


@dataclass(frozen=True, slots=True)
class Plugin:
    """A device that can be run by name. For a plugin without a usable device, ``error`` says why."""

    name: str
    source: str
    description: str = ""
    error: str = ""


@functools.cache
def bundled() -> Found:
    """The devices that come with Bellwire, by name."""
    found: Found = {}
    for module in pkgutil.iter_modules(bellwire.bundled.__path__):
        found |= devices_in(importlib.import_module(f"bellwire.bundled.{module.name}"))
    return found


def is_bundled(kind: type[PciDevice]) -> bool:
    """Whether a device class comes with Bellwire. It imports nothing, where :func:`bundled` imports all devices."""
    return kind.__module__.startswith(f"{bellwire.bundled.__name__}.")


def entry_points() -> importlib.metadata.EntryPoints:
    """The devices of installed packages. They are read again only if a folder that Python searches has changed.

    The fork server has read them, so that a worker need not: that would take most of the time until it has its device.
    """
    return _entry_points(tuple(map(_state, sys.path)))


@functools.lru_cache(maxsize=1)
def _entry_points(_: tuple[int, ...]) -> importlib.metadata.EntryPoints:
    return importlib.metadata.entry_points(group=GROUP)


def _state(folder: str) -> int:
    """The time of the last change of a folder, in nanoseconds; 0 if there is none."""
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def find_device(wanted: str, plugins: Sequence[Path] = ()) -> type[PciDevice]:
    """The class for ``bell``, ``./mine.py``, ``./mine/`` (a package), or ``./mine.py:name`` (if there are several).

    A plain name is searched among the bundled devices, then the entry points, then as NAME.py or NAME/ in the
    ``plugins`` folders, the first one first. Only the device that is asked for is imported. A plugin's files, and for
    root a file that is named by its path, must be such that no other user can have put them there.
    """
    return _find(wanted, plugins, open_named)


def find_functions(wanted: str, plugins: Sequence[Path] = ()) -> tuple[type[PciDevice], ...]:
    """The classes that ``wanted`` names: all functions of a file that has several, or else the one device.

    ``./card.py:console`` and ``./card.py:1`` name one function.
    """
    path, _, name = wanted.partition(":")
    if is_path(path) and not name:
        found = _load(path, open_named)
        if (functions := _functions(found)) is not None:
            return functions
        return (_one_of(devices_in(found), found, "", path),)
    return (find_device(wanted, plugins),)


def find_trusted(wanted: str, plugins: Sequence[Path], opened: Open = open_trusted) -> type[PciDevice]:
    """Like :func:`find_device`, but a file that is named by its path must be as trustworthy as a plugin."""
    return _find(wanted, plugins, opened, opened)


def find_again(wanted: str, sources: Sources, opened: Open = open_trusted) -> type[PciDevice]:
    """The class for ``wanted`` in its files as they were: what :func:`find_device` has found then."""
    return _chosen(load_again(sources, opened), wanted, sources.path)


def _chosen(module: ModuleType, wanted: str, path: str) -> type[PciDevice]:
    """The class that ``wanted`` names in a device's file or package."""
    plugin, _, name = wanted.partition(":")
    found = devices_in(module)
    return found[plugin] if plugin in found and not name else _one_of(found, module, name, path)


def _find(wanted: str, plugins: Sequence[Path], opened: Open, trusted: Open = open_trusted) -> type[PciDevice]:
    path, _, name = wanted.partition(":")
    if is_path(path):
        return _chosen(_load(path, opened), wanted, path)
    known = bundled()
    if wanted in known:
        return known[wanted]
    for entry in entry_points():
        if entry.name == wanted:
            return _from_entry(entry)
    files = {file.stem: file for file in reversed(list(_files(plugins)))}
    if path in files:
        return _chosen(load(files[path], trusted), wanted, str(files[path]))
    names = [*known, *_names(files)]
    if name and path in names:
        raise CommandError(f"{path} is one device: there is no {name!r} in it", f"ask for {path}")
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    own = f"./{wanted}.py" if wanted.isidentifier() else "./mine.py"
    raise CommandError(
        f"there is no device {wanted!r}",
        f"{hint}There are {', '.join(sorted(set(names)))}. A device of your own: give its file, as in {own}",
    )


def _load(path: str, opened: Open) -> ModuleType:
    if not path.endswith(".py") and not Path(path).is_dir():
        raise CommandError(f"{path}: the name of a device's file ends in .py")
    return load(Path(path), opened)


def _functions(module: ModuleType) -> tuple[type[PciDevice], ...] | None:
    """The functions that a device's file lists; None if it lists none."""
    listed = vars(module).get(functions.NAME)
    if not isinstance(listed, list | tuple):
        return None
    return functions.checked(listed, f"{functions.NAME} of {module.__file__}")


def names(folders: Sequence[Path]) -> list[str]:
    """The names that :func:`find_device` accepts, without paths. Imports no plugin."""
    return sorted({*bundled(), *_names(file.stem for file in _files(folders))})


def plugins(folders: Sequence[Path]) -> list[Plugin]:
    """All devices that :func:`find_device` can find. A plugin that cannot be used is listed with its error."""
    listed = [Plugin(name, "bundled", _describe(kind)) for name, kind in sorted(bundled().items())]
    for entry in entry_points():
        source = f"entry point {entry.value}"
        try:
            listed.append(Plugin(entry.name, source, _describe(_from_entry(entry))))
        except CommandError as error:
            listed.append(Plugin(entry.name, source, error=str(error)))
    seen: set[str] = set()
    for file in _files(folders):
        if file.stem not in seen:
            seen.add(file.stem)
            listed += _list_file(file)
    return listed


def devices_in(module: ModuleType) -> Found:
    """The complete device classes that ``module``, or a module inside it, defines and ``module`` names."""
    return {
        member.name: member
        for member in vars(module).values()
        if isinstance(member, type)
        and issubclass(member, PciDevice)
        and member.identity is not None
        and f"{member.__module__}.".startswith(f"{module.__name__}.")
    }


def _names(files: Iterable[str]) -> Iterator[str]:
    yield from files
    yield from (entry.name for entry in entry_points())


def files_for(wanted: str, plugins: Sequence[Path]) -> list[Path]:
    """Every path that could be the first file of the device ``wanted``, whether the file exists or not."""
    path, _, _ = wanted.partition(":")
    if is_path(path):
        return [first_file(Path(path))]
    return [folder / name for folder in plugins for name in (f"{path}.py", f"{path}/{INIT}")]


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    """The existing plugins: files, and folders that are packages."""
    for folder in folders:
        yield from sorted([*folder.glob("[!_.]*.py"), *(found.parent for found in folder.glob(f"[!_.]*/{INIT}"))])


def _list_file(file: Path) -> list[Plugin]:
    try:
        found = devices_in(load(file, open_trusted))
    except (CommandError, OSError) as error:
        return [Plugin(file.stem, str(file), error=str(error))]
    if not found:
        return [Plugin(file.stem, str(file), error="defines no device")]
    names = {name: file.stem if file.stem == name or len(found) == 1 else f"{file.stem}:{name}" for name in found}
    return [Plugin(names[name], str(file), _describe(kind)) for name, kind in sorted(found.items())]


def _describe(kind: type[PciDevice]) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _from_entry(entry: importlib.metadata.EntryPoint) -> type[PciDevice]:
    try:
        kind = entry.load()
    except Exception as error:
        raise CommandError(f"entry point {entry.value}: {type(error).__name__}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, PciDevice) and kind.identity is not None):
        raise CommandError(f"entry point {entry.value}: not a complete bellwire.PciDevice")
    return kind


def _one_of(found: Found, module: ModuleType, name: str, path: str) -> type[PciDevice]:
    listed = _functions(module) or ()
    if name.isdecimal() and name not in found and listed:
        if int(name) < len(listed):
            return listed[int(name)]
        raise CommandError(f"{path} has no function {name}", f"it has functions 0 to {len(listed) - 1}")
    if name:
        if name in found:
            return found[name]
        raise CommandError(f"{path} has no device {name!r}", f"it has {', '.join(sorted(found)) or 'none'}")
    if not found:
        raise CommandError(f"{path} defines no device", "derive a class from bellwire.PciDevice, with vendor=, device=")
    if len(listed) == 1:
        return listed[0]
    if listed:
        raise CommandError(
            f"{path} has {len(listed)} functions, each with a socket of its own", f"say which: {path}:0, for example"
        )
    if len(found) > 1:
        raise CommandError(
            f"{path} defines several devices: {', '.join(sorted(found))}", f"say which: {path}:{min(found)}"
        )
    return next(iter(found.values()))
