"""What ``bellwire new`` writes, for names that get into its way."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from bellwired.commands.template import write
from bellwired.errors import CommandError
from bellwired.find import find_device


@pytest.mark.parametrize("name", ["status", "guest_error", "bar", "guest", "none", "pci_device"])
def test_names_that_the_files_of_new_use_themselves_do_no_harm(name: str, tmp_path: Path) -> None:
    device, test, _ = write(name, tmp_path)
    find_device(str(device))
    words = [node.name for node in ast.walk(ast.parse(device.read_text())) if isinstance(node, ast.ClassDef)]
    assert len(words) == len(set(words)) == 2
    compile(test.read_text(), str(test), "exec")
    assert f"class {words[1]}(PciDevice" in device.read_text()
    assert words[1] not in {"Bar", "Guest", "GuestError", "PciDevice", "Status", "None"}


@pytest.mark.parametrize("name", ["struct", "sys", "pytest", "bellwire", "pathlib"])
def test_new_takes_no_name_that_its_test_would_import(name: str, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no name for a device"):
        write(name, tmp_path)
