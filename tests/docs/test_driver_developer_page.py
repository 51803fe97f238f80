"""docs/driver-developer.md: its patch fits what `bellwire new` writes, and its workflow is the example.

tests/guest/test_driver_developer_page.py runs its commands.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from bellwired.commands.template import write
from bellwired.find import find_device
from bellwired.maps import from_device, to_c
from docs.documents import DOCS, ROOT, blocks, rows, section

PAGE = DOCS / "driver-developer.md"


def test_the_patch_gives_the_device_and_its_header_a_register(tmp_path: Path) -> None:
    folder = tmp_path / "mover"
    write("mover", folder, "dma-ring")
    (patch,) = blocks(PAGE, "diff")
    done = subprocess.run(
        ["patch", "-p1", "--fuzz=0"], input=patch.text, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "offset" not in done.stdout
    assert "#define MOVER_COPIED " in to_c.write(from_device.read(find_device(str(folder / "mover.py"))))


def test_the_page_has_every_file_of_a_new_device(tmp_path: Path) -> None:
    written = {str(path.relative_to(tmp_path)) for path in write("mover", tmp_path, "dma-ring")}
    told = {name for first, *_ in rows(section(PAGE, "2. A device and a driver")) for name in first.split(", ")}
    assert written - {"driver/user_pci.py"} == told - {"file"}


def test_the_workflow_is_the_example() -> None:
    (workflow,) = blocks(PAGE, "yaml")
    assert workflow.text == (ROOT / "examples" / "ci" / "github.yml").read_text()
