"""docs/labs: each page's data sheet is that of the device, each driver has a hole, and its patch fills it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bellwired.find import find_device
from bellwired.maps import register_map as maps
from bellwired.maps.from_device import read
from docs.documents import LABS, rows, section

NAMES = {  # of each lab, and its driver
    "1-registers": "edu_registers",
    "2-interrupts": "edu_interrupts",
    "3-dma": "edu_dma",
    "4-queues": "engine_queues",
    "5-errors": "engine_errors",
}
ACCESS = {"constant": "read only", "ro": "read only", "rw": "read, write", "wo": "write only", "w1c": "a 1 clears"}
REACH = 0x100  # of the registers
every_lab = pytest.mark.parametrize("lab", NAMES)


def device(lab: str) -> maps.Map:
    edu = NAMES[lab].startswith("edu")
    return read(find_device("edu" if edu else str(LABS / "engine.py")))


def test_these_are_all_labs() -> None:
    assert sorted(path.name for path in LABS.iterdir() if (path / "Makefile").exists()) == list(NAMES)
    assert {path.stem for path in (LABS / "solutions").iterdir()} == set(NAMES)


@every_lab
def test_a_makefile_builds_the_driver_of_its_lab(lab: str) -> None:
    makefile = (LABS / lab / "Makefile").read_text()
    first = (LABS / "1-registers" / "Makefile").read_text().replace("edu_registers.o", f"{NAMES[lab]}.o")
    if not NAMES[lab].startswith("edu"):
        first = first.replace("edu_regs.h", "engine_regs.h").replace("engine_regs.h:", "engine_regs.h: ../engine.py")
        first = first.replace("export edu ", "export ../engine.py ")
    assert makefile == first


@every_lab
def test_the_registers_of_a_page_are_those_of_the_device(lab: str) -> None:
    items = {item.name: item for bar in device(lab).bars for item in bar.items if item.offset < REACH}
    found = [row for row in rows((LABS / lab / "README.md").read_text()) if row[0].startswith("0x")]
    assert len(found) >= 4
    for offset, name, size, access, _ in found:
        item = items[name]
        assert isinstance(item, maps.Register | maps.Doorbell)
        assert (int(offset, 16), int(size)) == (item.offset, item.size), name
        assert access == (ACCESS[item.access] if isinstance(item, maps.Register) else "doorbell"), name


def test_the_pages_of_the_engine_have_all_its_registers() -> None:
    told = {row[1] for lab in ("4-queues", "5-errors") for row in rows((LABS / lab / "README.md").read_text())}
    assert {item.name for bar in device("4-queues").bars for item in bar.items if item.offset < REACH} <= told


@pytest.mark.parametrize("register", ["error", "inject"])
def test_the_values_of_a_register_are_told(register: str) -> None:
    (item,) = (item for bar in device("5-errors").bars for item in bar.items if item.name == register)
    assert isinstance(item, maps.Register)
    told = [row[0] for row in rows(section(LABS / "5-errors" / "README.md", "The device"))]
    assert {f"{value.number} {value.name}" for value in item.values} <= set(told)


@every_lab
def test_a_driver_has_the_holes_that_its_page_names_and_the_patch_fills_them(lab: str, tmp_path: Path) -> None:
    driver = Path(lab, f"{NAMES[lab]}.c")
    shutil.copytree(LABS, tmp_path / "labs", ignore=shutil.ignore_patterns("__pycache__"))
    holes = re.findall(r"TODO \d|TODO", (tmp_path / "labs" / driver).read_text())
    assert holes == list(dict.fromkeys(re.findall(r"`(TODO(?: \d)?)`", (LABS / lab / "README.md").read_text())))
    for flags, left in (((), []), (("-R",), holes)):
        with (LABS / "solutions" / f"{lab}.patch").open() as patch:
            words = ["patch", "-p1", "--fuzz=0", *flags]
            done = subprocess.run(
                words, stdin=patch, cwd=tmp_path / "labs", capture_output=True, text=True, check=False
            )
        assert done.returncode == 0, done.stdout
        assert "offset" not in done.stdout
        assert re.findall(r"TODO \d|TODO", (tmp_path / "labs" / driver).read_text()) == left


def test_lab_5_begins_where_lab_4_ends() -> None:
    """The functions of the ring are the same."""
    patch = (LABS / "solutions" / "4-queues.patch").read_text()
    five = (LABS / "5-errors" / "engine_errors.c").read_text()
    added = [line[1:] for line in patch.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert all(line in five for line in added)
