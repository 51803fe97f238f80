"""What a machine is made of, and what is missing where there is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from bellwired.guest.archive import ArchiveError
from bellwired.guest.plan import HOST, MINIMAL, Share
from bellwired.testing import tools
from bellwired.testing.tools import NotHere, Tools
from bellwired.testing.wanted import Wanted, machine

TOOLBOX = SimpleNamespace(busybox=Path("/busybox"), qemu=["qemu"], qemu_environment={}, virtiofsd=["virtiofsd"])


class Config:
    """What :class:`Tools` asks of pytest's configuration."""

    pluginmanager = SimpleNamespace(getplugin=lambda name: None)

    def __init__(self, **options: str | int) -> None:
        self._options: dict[str, str | int | None] = {"kernel": None, "append": "", "verbose": 0, **options}

    def getoption(self, name: str) -> str | int | None:
        return self._options[name.removeprefix("--bellwire-")]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """QEMU and a kernel are here; the kernels that were asked for."""
    asked: list[str] = []
    monkeypatch.setattr(tools, "fetch_guest_tools", lambda progress: TOOLBOX)
    monkeypatch.setattr(tools, "find_qemu", lambda toolbox, needed: "QEMU")

    def find_kernel(word: str, *_: object) -> str:
        asked.append(word)
        return f"Linux of {word}"

    monkeypatch.setattr(tools, "find_kernel", find_kernel)
    return asked


def made(**options: str | int) -> Tools:
    config: Any = Config(**options)
    return Tools(config)


def wanted(**keywords: Any) -> Wanted:
    (first,) = machine([], **keywords).args
    assert isinstance(first, Wanted)
    return first


def module(folder: Path, name: str, depends: str) -> Path:
    path = folder / f"{name}.ko"
    path.write_bytes(b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0")
    return path


def test_a_plan_has_the_hosts_files_and_begins_in_the_tests_folder(found: list[str], tmp_path: Path) -> None:
    plan = made().plan(wanted(memory=1 << 30), [], [tmp_path / "driver", tmp_path])
    assert (plan["root"], plan["folder"], plan["memory"], plan["shares"]) == (HOST, str(tmp_path), 1 << 30, [])
    assert (plan["kernel"], plan["qemu"]) == ("Linux of debian", "QEMU")


@pytest.mark.parametrize(("text", "bytes_"), [("512M", 512 << 20), ("2G", 2 << 30)])
def test_memory_may_be_a_text(found: list[str], tmp_path: Path, text: str, bytes_: int) -> None:
    assert made().plan(wanted(memory=text), [], [tmp_path])["memory"] == bytes_


def test_a_minimal_guest_has_the_tests_folders(found: list[str], tmp_path: Path) -> None:
    plan = made().plan(wanted(root=MINIMAL), [], [tmp_path])
    assert plan["shares"] == [Share(tmp_path, str(tmp_path))]


def test_the_options_choose_kernel_and_command_line(found: list[str], tmp_path: Path) -> None:
    bench = made(kernel="../linux", append="debug")
    for _ in range(2):
        assert bench.plan(wanted(append="nosmp"), [], [tmp_path])["append"] == "debug nosmp"
    assert found == ["../linux"]


def test_the_kernels_modules_that_a_driver_needs_are_loaded_at_boot(found: list[str], tmp_path: Path) -> None:
    drivers = [module(tmp_path, "my-core", ""), module(tmp_path, "my-nic", "my_core,mdio,ptp")]
    plan = made().plan(wanted(), [*drivers, Path("uio_pci_generic")], [tmp_path])
    assert plan["modules"] == ["mdio", "ptp", "uio_pci_generic"]


def test_what_cannot_be_fetched_is_told_and_tried_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tries = []

    def fetch(_: object) -> NoReturn:
        tries.append(1)
        raise ArchiveError("the archive cannot be reached", "check the network")

    monkeypatch.setattr(tools, "fetch_guest_tools", fetch)
    bench = made()
    for _ in range(2):
        with pytest.raises(NotHere, match=r"the archive cannot be reached .*check the network"):
            bench.plan(wanted(), [], [tmp_path])
    assert len(tries) == 1


def test_only_a_folder_with_a_makefile_is_built(
    found: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = []
    monkeypatch.setattr(tools, "build_modules", lambda folder, kernel, progress: built.append((folder, kernel)))
    made().build(tmp_path / "x.ko")
    assert built == []
    (tmp_path / "Makefile").touch()
    made().build(tmp_path / "x.ko")
    assert built == [(tmp_path, "Linux of debian")]


@pytest.mark.parametrize(("verbose", "told"), [(0, ""), (1, "building it\n")])
def test_a_build_writes_no_line_between_the_dots_unless_pytest_is_verbose(
    found: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    verbose: int,
    told: str,
) -> None:
    monkeypatch.setattr(tools, "build_modules", lambda folder, kernel, progress: progress.step("building it"))
    (tmp_path / "Makefile").touch()
    made(verbose=verbose).build(tmp_path / "x.ko")
    assert capsys.readouterr().err == told
