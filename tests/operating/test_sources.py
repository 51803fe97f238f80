"""Devices in several files: a package, or a file with others beside it."""

from __future__ import annotations

import os
import py_compile
import shutil
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from bellwired import sources
from bellwired.errors import CommandError
from bellwired.find import find_device, find_trusted, plugins
from bellwired.sources import AsCompiled, Folder, open_trusted
from daemon.commands import bellwire
from operating.instance import EDITION, PLUGINS, Instance, connect, read

MAIN = """
from bellwire import PciDevice
from {parts} import EDITION, Registers

class Split(Registers, vendor=0x1234, device=1, class_code=0x088000):
    "In several files."
"""
PARTS = """
from bellwire import Bar, PciDevice

EDITION = 1

class Registers(PciDevice):
    mmio = Bar(0, size=4096)
    edition = mmio.reg(0x0C, access="constant", reset=EDITION)
"""


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """What was loaded is forgotten, as in a worker that ends."""
    before = list(sys.meta_path)
    yield
    sys.meta_path[:] = before
    for name in ("split", "split_parts", "split.parts", "split.deep", "split.deep.parts"):
        sys.modules.pop(name, None)


def package(folder: Path, parts: str = ".parts") -> Path:
    """A package ``split`` in two files, one level deep or two."""
    made = folder / "split"
    deep = made / "deep" if "deep" in parts else made
    deep.mkdir(parents=True)
    (made / "__init__.py").write_text(MAIN.format(parts=parts))
    (deep / "parts.py").write_text(PARTS)
    return made


def siblings(folder: Path) -> Path:
    """A file and the one that it imports."""
    folder.mkdir(exist_ok=True)
    (folder / "split.py").write_text(MAIN.format(parts="split_parts"))
    (folder / "split_parts.py").write_text(PARTS)
    return folder / "split.py"


@pytest.mark.parametrize("parts", [".parts", "split.parts", ".deep.parts"])
def test_a_package_is_a_device(tmp_path: Path, parts: str) -> None:
    path = package(tmp_path, parts)
    for wanted in (f"{path}", f"{path}/", f"{path}:split"):
        assert find_trusted(wanted, []).name == "split"


def test_a_package_may_name_a_class_from_one_of_its_modules(tmp_path: Path) -> None:
    path = package(tmp_path)
    (path / "parts.py").write_text(PARTS + MAIN.partition("\n\n")[2])
    (path / "__init__.py").write_text("from .parts import Split")
    assert find_device(str(path)).name == "split"


def test_a_file_imports_from_beside_it(tmp_path: Path) -> None:
    assert find_trusted(str(siblings(tmp_path)), []).name == "split"


@pytest.mark.slow
def test_run_takes_a_package_and_a_file_with_siblings(tmp_path: Path) -> None:
    for path in (siblings(tmp_path / "beside"), package(tmp_path)):
        done = bellwire("run", f"{path}", "--print-capabilities")
        assert (done.returncode, '"name": "split"' in done.stdout) == (0, True), done.stderr


def test_plugins_of_both_kinds_are_listed_and_found(tmp_path: Path) -> None:
    package(tmp_path)
    siblings(tmp_path / "other")
    for folder in (tmp_path, tmp_path / "other"):
        assert {each.name: each.error for each in plugins([folder])}["split"] == ""
        assert find_device("split", [folder]).name == "split"


def test_two_devices_have_each_a_module_of_the_same_name(tmp_path: Path) -> None:
    one, two = siblings(tmp_path / "one"), siblings(tmp_path / "two")
    (two.parent / "split_parts.py").write_text(PARTS.replace("EDITION = 1", "EDITION = 2"))
    found = [find_device(str(path)).layout.bars[0].placed[0] for path in (one, two)]
    assert [getattr(register, "reset", None) for register in found] == [1, 2]


def test_the_standard_library_comes_before_a_file_beside(tmp_path: Path) -> None:
    path = siblings(tmp_path)
    (tmp_path / "fractions.py").write_text("1 / 0")
    path.write_text(f"import fractions\nfractions.Fraction(1)\n{path.read_text()}")
    assert find_device(str(path)).name == "split"


@pytest.mark.parametrize("kind", ["package", "siblings"])
def test_each_of_the_files_must_be_as_trustworthy_as_the_first(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = package(tmp_path) if kind == "package" else siblings(tmp_path)
    part = path / "parts.py" if kind == "package" else tmp_path / "split_parts.py"
    part.chmod(0o666)
    with pytest.raises(CommandError, match=f"^{part}: others than its owner may write it"):
        find_trusted(str(path), [])
    assert f"{part}: others than" in {each.name: each.error for each in plugins([tmp_path])}["split"]
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    assert find_device(str(path)).name == "split"  # by a user, who has the file read with no more than his own rights


@pytest.mark.parametrize("level", ["split", "split/deep"])
def test_a_packages_folders_must_be_trustworthy(tmp_path: Path, level: str) -> None:
    path = package(tmp_path, ".deep.parts")
    (tmp_path / level).chmod(0o777)
    with pytest.raises(CommandError, match=f"{tmp_path / level}: others than its owner may write it"):
        find_trusted(str(path), [])


def test_a_folder_that_has_a_package_in_it_must_be_trustworthy(tmp_path: Path) -> None:
    path = package(tmp_path)
    tmp_path.chmod(0o777)
    with pytest.raises(CommandError, match=f"{tmp_path}: others than its owner may write it"):
        find_trusted(str(path), [])


@pytest.mark.parametrize("kind", ["package", "siblings"])
def test_bytecode_beside_a_part_is_not_run(tmp_path: Path, kind: str) -> None:
    path = package(tmp_path) if kind == "package" else siblings(tmp_path)
    part = path / "parts.py" if kind == "package" else tmp_path / "split_parts.py"
    part.write_text("1 / 0")
    py_compile.compile(str(part), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    part.write_text(PARTS)
    assert find_device(str(path)).name == "split"
    part.unlink()
    os.rename(next(part.parent.glob("__pycache__/*parts*")), part.with_suffix(".pyc"))  # without its source
    with pytest.raises(CommandError, match="ModuleNotFoundError"):
        find_device(str(path))


def test_an_error_has_the_place_in_the_part(tmp_path: Path) -> None:
    path = siblings(tmp_path)
    for text, error in (("\n1 / 0", "2: ZeroDivisionError"), ("\n\ndef", "3: SyntaxError")):
        (tmp_path / "split_parts.py").write_text(text)
        with pytest.raises(CommandError, match=f"^{tmp_path}/split_parts.py:{error}"):
            find_device(str(path))


def test_a_folder_that_is_no_package_says_so(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=f"{tmp_path}: no device: the folder has no __init__.py"):
        find_device(f"{tmp_path}/")


def test_the_files_that_were_run_are_known(tmp_path: Path) -> None:
    path = siblings(tmp_path)
    find_device(str(path))
    assert list(sources.loaded()) == [str(path), str(tmp_path / "split_parts.py")]
    (tmp_path / "split_parts.py").write_text("1 / 0")
    with pytest.raises(CommandError):
        find_device(str(path))
    assert list(sources.loaded()) == [str(path), str(tmp_path / "split_parts.py")]  # it may be mended


# -- under the daemon


@pytest.fixture
def split(daemon: Instance) -> Iterator[Path]:
    """A package among the plugins; its parts."""
    path = package(daemon.plugins)
    yield path / "parts.py"
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def test_an_edit_of_any_file_is_picked_up(daemon: Instance, split: Path) -> None:
    name, other = daemon.add('device = "split"'), daemon.add()
    pid = daemon.pid(other)
    split.write_text(PARTS.replace("EDITION = 1", "EDITION = 7"))
    assert daemon.reload()["restarted"] == [name]
    with connect(daemon.socket(name)) as client:
        assert read(client, EDITION) == 7
    assert name in daemon.reload()["unchanged"]
    assert daemon.pid(other) == pid


def test_a_mistake_in_a_part_leaves_the_device_running_and_is_mended(daemon: Instance, split: Path) -> None:
    name = daemon.add('device = "split"')
    pid = daemon.pid(name)
    split.write_text("1 / 0")
    assert "parts.py:1: ZeroDivisionError" in daemon.reload()["failed"][name]
    assert daemon.pid(name) == pid
    split.write_text(PARTS)
    assert daemon.reload()["restarted"] == [name]


def test_a_device_that_could_not_start_for_one_of_its_files_starts_once_that_is_mended(
    daemon: Instance, split: Path
) -> None:
    split.write_text("1 / 0")
    name = daemon.add('device = "split"')
    assert daemon.describe(name)["state"] == "failed"
    split.write_text(PARTS)
    assert daemon.reload()["restarted"] == [name]
    assert daemon.describe(name)["state"] == "running"


def test_relative_paths_in_a_devices_file_are_meant_from_where_it_lies(daemon: Instance) -> None:
    (daemon.devices / "mine.py").write_text((PLUGINS / "probe.py").read_text())
    mine = daemon.add('device = "./mine.py"')
    disk = daemon.add('device = "virtio-blk"\noptions = { image = "disk.img", size = "1M" }')
    assert [daemon.describe(name)["state"] for name in (mine, disk)] == ["running", "running"]
    assert (daemon.devices / "disk.img").stat().st_size == 1 << 20


def test_where_the_daemon_was_started_is_no_place_for_modules(
    instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a user who may write there could have the daemon run anything."""
    (tmp_path / "tempting.py").touch()
    (instance.plugins / "mine.py").write_text((PLUGINS / "probe.py").read_text() + "import tempting\n")
    instance.configure("one", 'device = "mine"')
    monkeypatch.chdir(tmp_path)
    with instance:
        assert "No module named 'tempting'" in instance.describe("one")["error"]


def test_an_extension_module_is_mapped_from_the_file_that_was_checked(tmp_path: Path) -> None:
    found = PathFinder.find_spec("_testbuffer") or PathFinder.find_spec("_lsprof")
    assert found is not None
    assert found.origin is not None
    names = [Path(found.origin).name, "second.so"]
    for name in names:
        shutil.copyfile(found.origin, tmp_path / name)
        module = AsCompiled(found.name, str(tmp_path / name), Folder(tmp_path, open_trusted)).create_module(found)
        assert module.__name__ == found.name
    (tmp_path / names[0]).chmod(0o666)
    with pytest.raises(CommandError, match="others than its owner may write it"):
        AsCompiled(found.name, str(tmp_path / names[0]), Folder(tmp_path, open_trusted)).create_module(found)
