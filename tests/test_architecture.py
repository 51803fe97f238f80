"""The arrows between packages run as docs/architecture.md draws them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
LONGEST_FILE = 450  # lines


AUTHORED = ("bundled", "virtio", "storage", "stream", "network")
"""Rooms of devices/bellwire that are written from the API that docs/writing-a-device.md documents."""


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    allowed = PACKAGES[package] | {Path(package).name}
    for file in files:
        against = (set(imported(file)) & OURS) - allowed
        assert not against, f"{file.relative_to(ROOT)} imports {', '.join(against)}"


def test_the_systemd_folder_is_no_package() -> None:
    assert not (ROOT / "systemd" / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_too_long_to_read(package: str) -> None:
    for file in (ROOT / package).rglob("*.py"):
        assert len(file.read_text().splitlines()) <= LONGEST_FILE, file.relative_to(ROOT)


def test_bundled_devices_use_what_every_author_can() -> None:
    files = [file for room in AUTHORED for file in (ROOT / "devices/bellwire" / room).rglob("*.py")]
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            inside = isinstance(node, ast.Attribute) and node.attr in ("core", "_core")
            assert not inside, f"{file.relative_to(ROOT)}:{node.lineno} reaches into .core"
