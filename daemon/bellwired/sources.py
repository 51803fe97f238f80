"""The Python files that a device is made of: one file and what it imports from beside it, or a package.

The source is compiled each time, because bytecode beside it may be older, or another user's. Each file is checked
before it runs, and recorded with its state, so that a reload can tell whether the device has changed.

Python searches a device's folder last: the standard library and installed packages take precedence.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType, ModuleType

from bellwire import DeclarationError
from bellwired.errors import CommandError

INIT = "__init__.py"
Stamp = tuple[int, int, int]
"""Inode number, time of the last change in ns, and size of a file."""
Check = Callable[[Path], None]
"""A function that raises a CommandError for a file that must not be run."""


def is_path(text: str) -> bool:
    """Whether ``text`` is the path of a file or folder, and not a name."""
    return text.endswith(".py") or "/" in text or text in (".", "..")


def first_file(path: Path) -> Path:
    """The file that is run first for the device ``path``, which names a file or a package's folder."""
    return path / INIT if path.is_dir() else path


def load(path: Path, check: Check) -> ModuleType:
    """Run the device's file or package ``path``. A CommandError names the file and line of an error.

    Modules of a device that was loaded before are forgotten, because both may have a module of the same name.
    """
    file = first_file(path)
    if not file.is_file():
        if path.is_dir():
            raise CommandError(f"{path}: no device: the folder has no {INIT}", "give a Python file, or a package")
        raise CommandError(f"{path}: no such file")
    _last[0].leave()
    _last.append(Folder(path, check))
    return _last[0].run(file)


def loaded() -> dict[str, Stamp | None]:
    """The files that the last :func:`load` has run or tried to run, with their states."""
    return dict(_last[0].files)


def stamp(file: Path) -> Stamp | None:
    """The state of a file now; None if there is no file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


class AsWritten(SourceFileLoader):
    """A loader that always compiles the source, and ignores bytecode."""

    def get_code(self, fullname: str) -> CodeType:
        """The compiled source."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class Folder:
    """The device ``path`` and its folder. While in use, it answers the imports of the device's own files."""

    def __init__(self, path: Path, check: Check = lambda _: None) -> None:
        self.files: dict[str, Stamp | None] = {}
        self._path = path.absolute()
        self._check = check
        self._modules: list[str] = []
        self._packages: set[str] = set()
        self._finders = (_Parts(self), _Siblings(self))

    def run(self, file: Path) -> ModuleType:
        """Run its first file."""
        name = self._path.stem if file == self._path else self._path.name
        if not name.isidentifier() or _taken(name):
            name = f"bellwire_file_{name}"
        sys.meta_path.insert(0, self._finders[0])
        sys.meta_path.append(self._finders[1])
        inside = [str(self._path)] if self._path.is_dir() else None
        loader = AsWritten(name, str(file))
        spec = importlib.util.spec_from_file_location(name, file, loader=loader, submodule_search_locations=inside)
        assert spec is not None  # there is a loader
        module = importlib.util.module_from_spec(spec)
        try:
            self.admit(spec)
            sys.modules[name] = module
            loader.exec_module(module)
        except CommandError:
            self.leave()
            raise
        except (Exception, SystemExit) as error:  # the user's file may raise anything
            self.leave()
            raise CommandError(f"{self._place(error, file)}: {type(error).__name__}: {error}") from error
        return module

    def leave(self) -> None:
        """Remove its modules from those that are found by name. Objects made from them stay."""
        for finder in self._finders:
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)
        for name in self._modules:
            sys.modules.pop(name, None)
        self._modules.clear()

    def find(self, name: str, places: Sequence[str] | None) -> ModuleSpec | None:
        """A module of the device's own in ``places``, or beside its first file; None if there is none."""
        for place in [str(self._path.parent)] if places is None else places:
            loaders = (AsWritten, SOURCE_SUFFIXES), (ExtensionFileLoader, EXTENSION_SUFFIXES)
            spec = FileFinder(place, *loaders).find_spec(name)
            if spec is not None:
                self.admit(spec)
                return spec
        return None

    def owns(self, places: Sequence[str]) -> bool:
        """Whether ``places`` are where a package of the device has its parts."""
        return not self._packages.isdisjoint(places)

    def admit(self, spec: ModuleSpec) -> None:
        """Check a module before it runs, and record it."""
        inside = spec.submodule_search_locations or []
        origin = [spec.origin] if spec.origin and spec.has_location else []
        for file in origin:
            self.files[file] = stamp(Path(file))
        for each in [*inside, *origin]:
            self._check(Path(each))
        self._packages.update(inside)
        self._modules.append(spec.name)

    def _place(self, error: BaseException, file: Path) -> str:
        """FILE:LINE of the innermost frame that lies in one of its files."""
        if isinstance(error, SyntaxError) and error.lineno is not None:
            return f"{error.filename or file}:{error.lineno}"
        own = {Path(each).resolve(): each for each in self.files}
        if isinstance(error, DeclarationError) and error.place is not None:  # nearer than the class's own line
            name, line = error.place
            if (found := own.get(Path(name).resolve())) is not None:
                return f"{found}:{line}"
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if (place := own.get(Path(frame.filename).resolve())) is not None:
                return f"{place}:{frame.lineno}"
        return str(file)


class _Parts:
    """The finder for modules inside the device's packages. It has the last word, or others would take bytecode."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: Sequence[str] | None, _: ModuleType | None = None) -> ModuleSpec | None:
        """As importlib asks."""
        if path is None or not self._folder.owns(path):
            return None
        spec = self._folder.find(name, path)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return spec


class _Siblings:
    """The finder for modules beside the device's file or package; it comes last."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: Sequence[str] | None, _: ModuleType | None = None) -> ModuleSpec | None:
        """As importlib asks."""
        return self._folder.find(name, None) if path is None else None


_last = deque([Folder(Path())], maxlen=1)


def _taken(name: str) -> bool:
    """Whether ``import NAME`` would find another module."""
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return True
