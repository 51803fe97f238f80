"""The arrows between packages run as docs/architecture.md draws them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"vfio_user", "kvm_ioctls", "bellwire", "bellwire_vmm", "bellwired"}
PACKAGES = {
    "protocol/vfio_user": set(),
    "kvm/kvm_ioctls": set(),
    "kvm/bellwire_vmm": {"vfio_user", "kvm_ioctls"},
    "devices/bellwire": {"vfio_user"},
    "daemon/bellwired": OURS,
}
LONGEST_FILE, LONGEST_TEST = 400, 450  # lines; a test may go on a little: what it needs comes with it

FLOORS: dict[str, list[str]] = {
    "devices/bellwire": [
        "errors linux pieces trust",
        "paths",
        "unix_sockets",
        "declare",
        "pci",
        "model",
        "device",
        "filters",
        "faults",
        "__init__",
        "capture",
        "recording",
        "serve virtio storage stream network",
        "vhost",
        "testing",
        "bundled",
        "pytest",
    ],
    "daemon/bellwired": [
        "__init__ errors release messages signals sinks terminal",
        "unblocked",
        "logs notify passed places sources toml_file",
        "box",
        "listen settings find filtering",
        "workers",
        "manager demo maps guest",
        "testing",
        "commands install",
        "start start_daemon",
        "__main__",
    ],
    "kvm/bellwire_vmm": [
        "errors",
        "guests",
        "machine",
        "device",
        "vmm",
        "board emulation saved",
        "linux moving",
        "__init__",
    ],
}
"""The rooms and files of a package, floor by floor: each imports from its own room and from the floors below.

A room on the same floor is out of reach, so that there are no circles. Imports for type checkers alone may go anywhere:
a declaration says which device it is read from, and a part of the model what it is a part of.
"""
CIRCLES = {
    # `bellwire install` writes the manual pages and completions of the commands, of which it is one.
    ("daemon/bellwired", "commands", "install"),
    ("daemon/bellwired", "install", "commands"),
}

DOORS = {"devices/bellwire/pytest.py": {"bellwired"}}
"""Files that import against the arrows, and what: names for tests. No other file of the package imports them."""

AUTHORED = ("bundled", "virtio", "vhost", "storage", "stream", "network")
"""Rooms of devices/bellwire that are written from the API that docs/writing-a-device.md documents."""


@functools.cache
def statements(file: Path) -> list[tuple[ast.Import | ast.ImportFrom, bool]]:
    """The imports of a file, each with whether it is for type checkers alone: below ``if TYPE_CHECKING:``."""
    tree = ast.parse(file.read_text())
    for_checkers: set[ast.AST] = set()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for_checkers |= {inside for statement in node.body for inside in ast.walk(statement)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
    return [(node, node in for_checkers) for node in found]


def imported(file: Path) -> Iterator[str]:
    for node, _ in statements(file):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    allowed = PACKAGES[package] | {Path(package).name}
    for file in files:
        against = (set(imported(file)) & OURS) - allowed - DOORS.get(str(file.relative_to(ROOT)), set())
        assert not against, f"{file.relative_to(ROOT)} imports {', '.join(against)}"


@pytest.mark.parametrize("door", DOORS)
def test_a_door_is_used_by_tests_alone(door: str) -> None:
    assert (ROOT / door).exists()
    name = ".".join(Path(door).with_suffix("").parts[1:])
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            assert name not in modules_imported(file, ROOT / Path(door).parent), file.relative_to(ROOT)


def modules_imported(file: Path, package: Path) -> Iterator[str]:
    """The modules of ``package`` that a file of it imports from at run time."""
    for node, for_checkers in statements(file):
        if for_checkers:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == package.name)
        elif node.module and node.module.partition(".")[0] == package.name:
            for alias in node.names:
                place = package.parent.joinpath(*node.module.split("."), alias.name)
                module = place.is_dir() or place.with_suffix(".py").exists()
                yield f"{node.module}.{alias.name}" if module else node.module


def rooms_imported(file: Path, package: Path) -> set[str]:
    """The rooms, or files beside them, that those modules are in."""
    return {module.partition(".")[2].partition(".")[0] or "__init__" for module in modules_imported(file, package)}


def floors(package: str) -> dict[str, int]:
    return {room: number for number, floor in enumerate(FLOORS[package]) for room in floor.split()}


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_has_its_floor(package: str) -> None:
    rooms = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert set(floors(package)) == rooms


@pytest.mark.parametrize("package", FLOORS)
def test_a_room_imports_from_the_floors_below(package: str) -> None:
    folder, floor = ROOT / package, floors(package)
    for file in folder.rglob("*.py"):
        own = file.relative_to(folder).parts[0].removesuffix(".py")
        for room in rooms_imported(file, folder) - {own}:
            allowed = floor[room] < floor[own] or (package, own, room) in CIRCLES
            assert allowed, f"{file.relative_to(ROOT)} imports from {room}, which is not below {own}"


LATE = {
    # Imported when the command runs: it writes the manual pages of all commands, and is one of them.
    ("bellwired.commands.install", "bellwired.install.contents"),
}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    folder = ROOT / package
    graph: dict[str, set[str]] = {}
    for file in folder.rglob("*.py"):
        own = ".".join(file.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
        graph[own] = {other for other in modules_imported(file, folder) if (own, other) not in LATE} - {own}
    list(TopologicalSorter(graph).static_order())  # a CycleError names the modules


def test_the_systemd_folder_is_no_package() -> None:
    assert not (ROOT / "systemd" / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_too_long_to_read(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        assert len(file.read_text().splitlines()) <= LONGEST_FILE, file.relative_to(ROOT)


def test_no_test_is_too_long_to_read() -> None:
    for file in (ROOT / "tests").rglob("*.py"):
        assert len(file.read_text().splitlines()) <= LONGEST_TEST, file.relative_to(ROOT)


def test_bundled_devices_use_what_every_author_can() -> None:
    files = [file for room in AUTHORED for file in (ROOT / "devices/bellwire" / room).rglob("*.py")]
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                place = f"{file.relative_to(ROOT)}:{node.lineno}"
                assert node.attr not in ("core", "_core"), f"{place} reaches into .core"
