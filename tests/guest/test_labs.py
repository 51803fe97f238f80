"""docs/labs: each driver builds with its hole and fails its lab's test; with the hole filled, it passes. One boot."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bellwire.pytest import Vm, machine
from bellwired.guest.build import build_modules
from bellwired.guest.errors import CommandFailed
from bellwired.guest.fetch import fetch_guest_tools
from docs.documents import LABS

NAMES = sorted(path.parent.name for path in LABS.glob("*/Makefile"))
OF_EDU = NAMES[:3]
HOLE, FILLED = "hole", "filled"

pytestmark = [pytest.mark.guest, machine(devices=["edu", str(LABS / "engine.py")], trace=False)]


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The module of each lab, with its hole and without. The labs are built together, which is quicker."""
    kernel = fetch_guest_tools().kernel
    folder = tmp_path_factory.mktemp("labs")
    shutil.copytree(LABS, folder / HOLE)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for lab in NAMES:
        header = "edu_regs.h" if lab in OF_EDU else "engine_regs.h"
        subprocess.run(["make", "-s", header], cwd=folder / HOLE / lab, env=environment, check=True)
    shutil.copytree(folder / HOLE, folder / FILLED)
    for patch in sorted((LABS / "solutions").iterdir()):
        with patch.open() as text:
            subprocess.run(["patch", "-s", "-p1"], cwd=folder / FILLED, stdin=text, check=True)
    sources = {lab: next((LABS / lab).glob("*.c")).relative_to(LABS) for lab in NAMES}
    objects = " ".join(str(source.with_suffix(".o")) for source in sources.values())
    for state in (HOLE, FILLED):
        (folder / state / "Makefile").write_text(f"obj-m := {objects}\n")
    with ThreadPoolExecutor(2) as pool:
        built = list(pool.map(lambda state: build_modules(folder / state, kernel), (HOLE, FILLED)))
    assert [each.warnings for each in built] == ["", ""]
    return {
        (lab, state): folder / state / source.with_suffix(".ko")
        for lab, source in sources.items()
        for state in (HOLE, FILLED)
    }


def lab_tests(lab: str) -> Iterator[tuple[str, Callable[[Vm], None]]]:
    """The tests of a lab, by name."""
    (file,) = (LABS / lab).glob("test_*.py")
    spec = importlib.util.spec_from_file_location(f"lab_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return ((name, test) for name, test in vars(module).items() if name.startswith("test_"))


def failure(vm: Vm, module: Path, test: Callable[[Vm], None]) -> str:
    """Run one test with the driver loaded; why it fails, or nothing."""
    vm.machine.insert(module)
    try:
        test(vm)
    except (AssertionError, CommandFailed) as error:
        return str(error) or type(error).__name__
    finally:
        vm.machine.remove(module.stem)
        vm.reset("edu")
        vm.reset("engine")
    return ""


@pytest.mark.parametrize("lab", NAMES)
def test_a_lab_fails_with_the_hole(vm: Vm, modules: dict[tuple[str, str], Path], lab: str) -> None:
    assert any(failure(vm, modules[lab, HOLE], test) for _, test in lab_tests(lab))


@pytest.mark.parametrize("lab", NAMES)
def test_a_lab_passes_with_the_solution(vm: Vm, modules: dict[tuple[str, str], Path], lab: str) -> None:
    assert {name: failure(vm, modules[lab, FILLED], test) for name, test in lab_tests(lab)} == {
        name: "" for name, _ in lab_tests(lab)
    }
