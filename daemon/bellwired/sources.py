"""The Python files that a device is made of: one file and what it imports from beside it, or a package.

The source is compiled each time, because bytecode beside it may be older, or another user's. Each file is opened once:
what was opened is checked, recorded with its state, and run. So a reload can tell whether the device has changed, and a
file that is exchanged after the check runs nothing.

Python searches a device's folder last: the standard library and installed packages take precedence.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
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

import msgspec

from bellwire import DeclarationError
from bellwire.paths import PathError, open_any_file, open_file
from bellwire.trust import asking_users
from bellwired.errors import CommandError

INIT = "__init__.py"
Stamp = tuple[int, int, int]
"""Inode number, time of the last change in ns, and size of a file."""
Open = Callable[[Path], int]
"""A function that opens a file to be run; the caller owns the descriptor. A CommandError if it must not be run."""


class Sources(msgspec.Struct):
    """The files of a device as they were run: what each had, and its state then.

    ``path`` is the device's: its file, or the ``package``'s folder.
    """

    path: str
    package: bool
    files: dict[str, tuple[Stamp | None, bytes]]

    @property
    def current(self) -> bool:
        """Whether the files on disk are these."""
        return all(stamp(Path(file)) == known for file, (known, _) in self.files.items())


def is_path(text: str) -> bool:
    """Whether ``text`` is the path of a file or folder, and not a name."""
    return text.endswith(".py") or "/" in text or text in (".", "..")


def first_file(path: Path) -> Path:
    """The file that is run first for the device ``path``, which names a file or a package's folder."""
    return path / INIT if path.is_dir() else path


def load(path: Path, opened: Open) -> ModuleType:
    """Run the device's file or package ``path``. A CommandError names the file and line of an error.

    Modules of a device that was loaded before are forgotten, because both may have a module of the same name.
    """
    file = first_file(path)
    if not file.is_file():
        if path.is_dir():
            raise CommandError(f"{path}: no device: the folder has no {INIT}", "give a Python file, or a package")
        raise CommandError(f"{path}: no such file")
    return _run(Folder(path, opened, package=path.is_dir()))


def load_again(sources: Sources, opened: Open) -> ModuleType:
    """Run a device's files as they were. What these import for the first time is read as it is now."""
    return _run(Folder(Path(sources.path), opened, package=sources.package, was=sources.files))


def _run(folder: Folder) -> ModuleType:
    _last[0].leave()
    _last.append(folder)
    return folder.run()


def loaded() -> dict[str, Stamp | None]:
    """The files that the last :func:`load` has run or tried to run, with their states."""
    return dict(_last[0].files)


def as_run() -> Sources:
    """The Python files that the last :func:`load` has run."""
    return _last[0].sources()


def stamp(file: Path) -> Stamp | None:
    """The state of a file now; None if there is no file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return _stamp(status)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_size


def open_trusted(path: Path) -> int:
    """Open a file that only root and this process's user can have put there."""
    return _opened(lambda: open_file(path), path)


def open_named(path: Path) -> int:
    """Open a file that a user has named on the command line.

    A user runs what they name. Root runs only what root, or the user who has used sudo, can have put there.
    """
    if os.geteuid():
        return _opened(lambda: open_any_file(path), path)
    return _opened(lambda: open_file(path, asking_users()), path)


def _opened(work: Callable[[], int], path: Path) -> int:
    try:
        return work()
    except PathError as error:
        raise CommandError(f"{error.filename}: {error.strerror}", error.hint) from None
    except OSError as error:
        raise CommandError(f"{error.filename or path}: {error.strerror}") from None


class AsWritten(SourceFileLoader):
    """A loader that always compiles the source, and ignores bytecode."""

    def __init__(self, name: str, path: str, folder: Folder) -> None:
        super().__init__(name, path)
        self._folder = folder

    def get_code(self, fullname: str) -> CodeType:
        """The compiled source."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def get_data(self, path: str) -> bytes:
        """The content of the file that was checked."""
        return self._folder.read(path)


class AsCompiled(ExtensionFileLoader):
    """A loader of extension modules that maps the file that was checked."""

    def __init__(self, name: str, path: str, folder: Folder) -> None:
        super().__init__(name, path)
        self._folder = folder

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Map the module. The path is new each time, because dlopen(3) takes an equal one for the same file."""
        fd = self._folder.open(self.path)
        try:
            again = "./" * next(_loads)
            return super().create_module(ModuleSpec(spec.name, self, origin=f"/proc/self/fd/{again}{fd}"))
        finally:
            os.close(fd)


class Folder:
    """The device ``path`` and its folder. While in use, it answers the imports of the device's own files.

    Files in ``was`` are as they are there, whatever is on the disk.
    """

    def __init__(
        self,
        path: Path,
        opened: Open = open_named,
        *,
        package: bool = False,
        was: Mapping[str, tuple[Stamp | None, bytes]] = {},
    ) -> None:
        self.files: dict[str, Stamp | None] = {}
        self._path = path.absolute()
        self._package = package
        self._open = opened
        self._was = was
        self._texts: dict[str, bytes] = {}
        self._modules: list[str] = []
        self._packages: set[str] = set()
        self._finders = (_Parts(self), _Siblings(self))

    def run(self) -> ModuleType:
        """Run its first file."""
        file = self._path / INIT if self._package else self._path
        name = self._path.name if self._package else self._path.stem
        if not name.isidentifier() or _taken(name):
            name = f"bellwire_file_{name.replace('.', '_')}"
        sys.meta_path.insert(0, self._finders[0])
        sys.meta_path.append(self._finders[1])
        inside = [str(self._path)] if self._package else None
        loader = AsWritten(name, str(file), self)
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
            loaders = (self._written, SOURCE_SUFFIXES), (self._compiled, EXTENSION_SUFFIXES)
            finder = FileFinder(place, *loaders)  # type: ignore[arg-type] # any callable will do
            spec = self._as_it_was(name, place) or finder.find_spec(name)
            if spec is not None:
                self.admit(spec)
                return spec
        return None

    def owns(self, places: Sequence[str]) -> bool:
        """Whether ``places`` are where a package of the device has its parts."""
        return not self._packages.isdisjoint(places)

    def admit(self, spec: ModuleSpec) -> None:
        """Record a module before it runs."""
        if spec.origin and spec.has_location:
            self.files[spec.origin] = stamp(Path(spec.origin))
        self._packages.update(spec.submodule_search_locations or [])
        self._modules.append(spec.name)

    def open(self, path: str) -> int:
        """Open a file that is to be run, and record its state. The caller owns the descriptor."""
        fd = self._open(Path(path))
        self.files[path] = _stamp(os.fstat(fd))
        return fd

    def read(self, path: str) -> bytes:
        """The content of a file that is to be run; its state is recorded."""
        if path in self._was:
            self.files[path], text = self._was[path]
        else:
            with open(self.open(path), "rb") as file:
                text = file.read()
        self._texts[path] = text
        return text

    def sources(self) -> Sources:
        """The files that were run."""
        files = {path: (self.files[path], text) for path, text in self._texts.items()}
        return Sources(str(self._path), self._package, files)

    def _as_it_was(self, name: str, place: str) -> ModuleSpec | None:
        """A module of those that are as they were."""
        base = os.path.join(place, name.rpartition(".")[2])
        for file, inside in ((os.path.join(base, INIT), [base]), (f"{base}.py", None)):
            if file in self._was:
                loader = AsWritten(name, file, self)
                return importlib.util.spec_from_file_location(
                    name, file, loader=loader, submodule_search_locations=inside
                )
        return None

    def _written(self, name: str, path: str) -> AsWritten:
        return AsWritten(name, path, self)

    def _compiled(self, name: str, path: str) -> AsCompiled:
        return AsCompiled(name, path, self)

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


_loads = itertools.count(1)
_last = deque([Folder(Path())], maxlen=1)


def _taken(name: str) -> bool:
    """Whether ``import NAME`` would find another module."""
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return True
