"""The tools of guests come into the cache once, whole or not at all."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bellwired.guest import archive, fetch
from bellwired.guest.archive import ArchiveError
from bellwired.guest.caches import MAKING, caches, only_one
from bellwired.guest.fetch import PACKAGES, fetch_guest_tools, place
from bellwired.guest.toolbox import Toolbox
from kernels.signed_archive import SignedArchive

pytestmark = pytest.mark.slow
PATIENCE = 120.0  # seconds, for a real apt on a busy machine

FETCH = """
import sys
from bellwired.guest import archive, fetch, progress
archive.KEYRINGS = (archive.Path(sys.argv[1]),)
fetch.Toolbox.check = lambda _: None
with progress.shown() as shown:
    fetch.fetch_guest_tools(shown)
"""
ALL = dict.fromkeys((*PACKAGES, "fio"), "1.0")


class Heard:
    """What progress has said."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def share(self, done: float) -> None:
        assert 0 <= done <= 1


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small archive has no QEMU that could be asked for its devices."""
    monkeypatch.setattr(Toolbox, "check", lambda _: None)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.usefixtures("unchecked")
def test_the_tools_are_fetched_once(signed: SignedArchive) -> None:
    signed.publish(ALL)
    heard = Heard()
    tools = fetch_guest_tools(heard)
    assert {path.name for path in (tools.root / "usr/share").iterdir()} == set(PACKAGES)
    assert [step.split()[0] for step in heard.steps] == ["fetching", "unpacking", "done"]
    signed.publish({})
    heard = Heard()
    assert fetch_guest_tools(heard).folder == tools.folder
    assert heard.steps == []
    assert names(tools.folder.parent) == {tools.folder.name, "lock"}


@pytest.mark.usefixtures("unchecked")
def test_tools_that_were_fetched_with_more_packages_serve_too(signed: SignedArchive) -> None:
    signed.publish(ALL)
    more = fetch_guest_tools(extra=("fio",))
    assert fetch_guest_tools().folder == more.folder


@pytest.mark.usefixtures("unchecked")
def test_tools_that_lack_a_package_do_not_serve(signed: SignedArchive) -> None:
    signed.publish(ALL)
    assert fetch_guest_tools().folder != fetch_guest_tools(extra=("fio",)).folder


def test_a_qemu_that_is_not_as_it_should_be_leaves_nothing_behind(signed: SignedArchive) -> None:
    signed.publish(ALL)
    with pytest.raises(ArchiveError, match="the packages are not what was expected"):
        fetch_guest_tools()
    assert not place(PACKAGES).exists()
    assert not list(place(PACKAGES).parent.glob(f"{MAKING}*"))


@pytest.mark.usefixtures("unchecked")
def test_what_a_killed_process_has_left_is_removed(signed: SignedArchive) -> None:
    signed.publish(ALL)
    left = place(PACKAGES).parent / f"{MAKING}killed"
    left.mkdir(parents=True)
    folder = fetch_guest_tools().folder
    assert names(folder.parent) == {folder.name, "lock"}


def test_what_an_interrupted_run_has_fetched_is_not_fetched_again(
    signed: SignedArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed.publish(ALL)
    with pytest.raises(ArchiveError, match="the packages are not what was expected"):
        fetch_guest_tools()
    shutil.rmtree(signed.mirror / "pool")
    monkeypatch.setattr(Toolbox, "check", lambda _: None)
    folder = fetch_guest_tools().folder
    assert names(folder.parent) == {folder.name, "lock"}


def test_an_error_says_what_was_wanted_and_from_where(signed: SignedArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(archive.MIRROR, "copy:///nowhere/debian")
    with pytest.raises(ArchiveError) as caught:
        fetch_guest_tools()
    assert str(caught.value).startswith(f"cannot fetch {', '.join(PACKAGES)} of Debian trixie from /nowhere/debian: ")
    assert "/nowhere/debian trixie Release' does not have a Release file" in str(caught.value)
    assert "check the network" in caught.value.hint


@pytest.mark.usefixtures("unchecked")
def test_two_processes_at_once_fetch_once(signed: SignedArchive) -> None:
    """The second one waits for the lock, and then finds what the first has fetched."""
    signed.publish(ALL)
    place(PACKAGES).parent.mkdir(parents=True)
    with only_one(place(PACKAGES).parent):
        processes = [
            subprocess.Popen([sys.executable, "-c", FETCH, *archive.KEYRINGS], stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        waiting(place(PACKAGES).parent / "lock", 2)
    said = sorted((process.communicate(timeout=PATIENCE)[1].splitlines() for process in processes), key=len)
    assert [process.returncode for process in processes] == [0, 0], said
    assert ["waiting for it" in each[0] for each in said] == [True, True]
    assert [len(each) for each in said] == [1, 4]


def waiting(lock: Path, count: int) -> None:
    """Wait until so many processes wait for the lock (proc_locks(5))."""
    number, end = f":{lock.stat().st_ino} ", time.monotonic() + PATIENCE
    while sum(number in line and "->" in line for line in Path("/proc/locks").read_text().splitlines()) < count:
        assert time.monotonic() < end, "no process waits for the lock"
        time.sleep(0.01)


@pytest.mark.parametrize(("named", "found"), [("/somewhere", "/somewhere/bellwire"), ("relative", None), ("", None)])
def test_the_cache_is_where_xdg_says(named: str, found: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    assert str(caches()) == (found or str(Path.home() / ".cache/bellwire"))


def test_the_folder_is_named_by_what_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = place(PACKAGES)
    assert place((*PACKAGES, "fio")) != before
    monkeypatch.setattr(fetch, "SUITE", "forky")
    assert place(PACKAGES) != before
