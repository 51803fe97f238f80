"""From what a user types to a device class: a bundled device's name, or a Python file."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
import sys
import traceback
from pathlib import Path
from types import ModuleType

import bellwire.bundled
from bellwire import PciDevice
from bellwired.errors import CommandError


def bundled() -> dict[str, type[PciDevice]]:
    """The devices that come with Bellwire, by name."""
    found: dict[str, type[PciDevice]] = {}
    for module in pkgutil.iter_modules(bellwire.bundled.__path__):
        found |= devices_in(importlib.import_module(f"bellwire.bundled.{module.name}"))
    return found


def find_device(wanted: str) -> type[PciDevice]:
    """The class for ``bell``, ``./mine.py`` or ``./mine.py:name`` (where a file holds several)."""
    path, _, name = wanted.partition(":")
    if path.endswith(".py"):
        return _one_of(devices_in(_load(Path(path))), name, path)
    known = bundled()
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise CommandError(
        f"there is no device {wanted!r}",
        f"{hint}Bundled: {', '.join(sorted(known))}. A device of your own: give its file, as in ./{wanted}.py",
    )


def devices_in(module: ModuleType) -> dict[str, type[PciDevice]]:
    """The complete device classes that ``module`` itself defines, by name."""
    return {
        member.name: member
        for member in vars(module).values()
        if isinstance(member, type)
        and issubclass(member, PciDevice)
        and member.identity is not None
        and member.__module__ == module.__name__
    }


def _load(path: Path) -> ModuleType:
    if not path.is_file():
        raise CommandError(f"{path}: no such file")
    name = f"bellwire_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CommandError(f"{path}: not a Python file that can be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (
        Exception,
        SystemExit,
    ) as error:  # the file is the user's: whatever it raises ends the command, with the place named
        sys.modules.pop(name, None)
        raise CommandError(f"{_place(error, path)}: {type(error).__name__}: {error}") from error
    return module


def _place(error: BaseException, path: Path) -> str:
    """FILE:LINE of the innermost frame that lies in the user's file."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{path}:{error.lineno}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _one_of(found: dict[str, type[PciDevice]], name: str, path: str) -> type[PciDevice]:
    if name:
        if name in found:
            return found[name]
        raise CommandError(f"{path} has no device {name!r}", f"it has {', '.join(sorted(found)) or 'none'}")
    if not found:
        raise CommandError(f"{path} defines no device", "derive a class from bellwire.PciDevice, with vendor=, device=")
    if len(found) > 1:
        raise CommandError(
            f"{path} defines several devices: {', '.join(sorted(found))}", f"say which: {path}:{min(found)}"
        )
    return next(iter(found.values()))
